"""The findings as one HTML file to look through: no script, nothing fetched, readable on a phone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tellapart.checking.looks import decode_damaged
from tellapart.checking.run import CheckResult
from tellapart.data.dataset import Dataset
from tellapart.errors import ImageError
from tellapart.imaging.decode import StoredImage, decode_image
from tellapart.imaging.pool import map_ordered
from tellapart.pages.pictures import jpeg_uri, thumbnail
from tellapart.pages.template import PageTemplate
from tellapart.records import Issue, Progress, no_progress

THUMBNAIL_PX = 160
MAX_PAGE_BYTES = 5_000_000
MAX_SHOWN = 24
"""Issues of one kind that are shown, fewer where the page would grow too large; the rest is counted."""

_MAX_IMAGES = 6  # of one issue
_MAX_CLASSES = 500  # whose images are counted one by one
_JPEG_QUALITY = 74
_BYTES_A_CAPTION = 900  # at most, of the markup and words around an image
_MAX_WORDS = 300  # letters of a message or a path

# Title, and what it means and what to do.
_WORDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "label-conflict": (
            "One picture, two classes",
            "At most one of the labels is right. Keep the copy that has it.",
        ),
        "leak": (
            "One picture on two sides of a split",
            "What is tested was also learned, so the score is too high. Keep the copy in the test part.",
        ),
        "unreadable": (
            "Cannot be read",
            "These are never used, and never skipped in silence. Replace or remove them.",
        ),
        "truncated": ("Cut short", "A part of the picture is there. It is not used: the rest would be made up."),
        "label-error": (
            "Likely mislabelled",
            "A model that never saw the image finds another class more likely. Look, then relabel or leave it.",
        ),
        "blank": ("Images of nothing", "One colour, and nothing in it."),
        "small-class": (
            "Classes too small to measure",
            "With so few test images a good recogniser cannot be told from a poor one. Add images.",
        ),
        "name-clash": (
            "Names that clash",
            "Equal but for case or the way accents are written: on another computer one would overwrite the other.",
        ),
        "duplicate": ("The same file again", "One of each is used; it cannot lie on both sides of a split."),
        "near-duplicate": (
            "Nearly the same picture",
            "Re-encoded, resized, cropped, mirrored or brightened. Such copies should stay on one side of a split.",
        ),
        "outlier": ("Unlike its class", "Far from the other images of its class: rare, or none of it."),
        "dark": ("Very dark", "Hardly anything to be seen, unlike the rest."),
        "bright": ("Very bright", "Hardly anything to be seen, unlike the rest."),
        "blurred": ("Very blurred", "No detail left, even when made small, unlike the rest."),
        "imbalance": ("Imbalance", "Most images are of one class; the smallest is learned and measured poorly."),
        "odd-size": ("Odd size", "Much larger or smaller than the rest."),
        "odd-shape": ("Odd shape", "Much wider or taller than the rest."),
        "wrong-extension": ("Wrong extension", "Read by what is in them. Other programs may go by the name."),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One image of an issue.

    Attributes:
        path: below the source.
        note: what is said of this one, such as its class.
        uri: the thumbnail; empty where there is none.
    """

    path: str
    note: str = ""
    uri: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One issue: its pictures, what is said of them, and how many more there are."""

    pictures: tuple[Picture, ...]
    text: str = ""
    more: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The issues of one kind, worst first, and how many are not shown."""

    kind: str
    title: str
    text: str
    count: int
    cards: tuple[Card, ...]

    @property
    def left_out(self) -> int:
        """Issues that are not shown."""
        return self.count - len(self.cards)


def render_page(result: CheckResult, *, title: str, progress: Progress = no_progress) -> bytes:
    """The page as UTF-8, of at most ``MAX_PAGE_BYTES``; names of files and classes are escaped.

    Args:
        result: what was found; the images are read again for their thumbnails.
        title: what was checked, such as the folder's name.
        progress: called with the number of thumbnails made.
    """
    shown, thumbnails = _shown(result, progress)
    root = f"{result.dataset.root}/"
    # In the order of each kind's worst, which is that of the counts.
    sections = [_section(kind, result.counts[kind], shown[kind], thumbnails, root) for kind in result.counts]
    classes = result.dataset.class_counts()
    return _PAGE.fill(
        title=title,
        sections=sections,
        total=len(result.issues),
        counts=result.dataset.counts(),
        reasons=result.dataset.reasons(),
        classes=list(classes.items())[:_MAX_CLASSES],
        more_classes=max(0, len(classes) - _MAX_CLASSES),
        notes=result.notes,
    )


def _shown(result: CheckResult, progress: Progress) -> tuple[dict[str, list[Issue]], dict[str, str]]:
    """For each kind the issues to show, and the thumbnails of their images by path: as many as the page has room for."""
    made: dict[str, str] = {}
    tried: set[str] = set()
    for limit in range(MAX_SHOWN, 0, -1):
        shown = {kind: result.of_kind(kind)[:limit] for kind in result.counts}
        paths = [path for issues in shown.values() for issue in issues for path in issue.paths[:_MAX_IMAGES]]
        missing = [path for path in dict.fromkeys(paths) if path not in tried]
        tried.update(missing)
        made |= _thumbnails(result.dataset, missing, progress)
        if sum(len(made.get(path, "")) + _BYTES_A_CAPTION for path in paths) < 0.95 * MAX_PAGE_BYTES:
            break
    return shown, made


def _thumbnails(dataset: Dataset, paths: Sequence[str], progress: Progress) -> dict[str, str]:
    """Thumbnails by path, of the images that can be decoded, even in part."""
    images = (dataset.stored.get(path, path) for path in paths)
    made: dict[str, str] = {}
    for done, (path, uri) in enumerate(zip(paths, map_ordered(_thumbnail, images), strict=True), start=1):
        if uri:
            made[path] = uri
        progress("thumbnails", done, len(paths))
    return made


def _thumbnail(image: str | StoredImage) -> str:
    try:
        pixels = decode_image(image, target_px=THUMBNAIL_PX)
    except ImageError:
        damaged = decode_damaged(image)
        if damaged is None:
            return ""
        pixels = damaged
    return jpeg_uri(thumbnail(pixels, THUMBNAIL_PX), quality=_JPEG_QUALITY)


def _section(kind: str, count: int, issues: Iterable[Issue], thumbnails: Mapping[str, str], root: str) -> Section:
    title, text = _WORDS[kind]
    cards = tuple(_card(issue, thumbnails, root) for issue in issues)
    return Section(kind=kind, title=title, text=text, count=count, cards=cards)


def _card(issue: Issue, thumbnails: Mapping[str, str], root: str) -> Card:
    shown = issue.paths[:_MAX_IMAGES]
    pictures = tuple(
        Picture(path=_short(path.removeprefix(root)), note=_note(issue, path), uri=thumbnails.get(path, ""))
        for path in shown
    )
    return Card(pictures=pictures, text=_short(_text(issue)), more=len(issue.paths) - len(shown))


def _note(issue: Issue, path: str) -> str:
    """What is said of one image among several."""
    parts = [str(_entry(issue, key, path)) for key in ("labels", "splits") if _entry(issue, key, path) is not None]
    compared = _entry(issue, "compared", path)
    if isinstance(compared, Mapping):
        parts.append(f"{', '.join(compared['changes'])} ({compared['similarity']:.2f})")
    return " · ".join(parts)


def _entry(issue: Issue, key: str, path: str) -> object:
    entries = issue.evidence.get(key)
    return entries.get(path) if isinstance(entries, Mapping) else None


def _text(issue: Issue) -> str:
    """The evidence in words."""
    said = issue.evidence
    if issue.kind in ("unreadable", "truncated"):
        return f"{said['code']}: {said['message']}"
    if issue.kind == "label-error":
        return f"{said['label']} ({said['prob']:.0%}) → {said['suggested']} ({said['suggested_prob']:.0%})"
    if issue.kind == "outlier":
        return str(said["label"])
    if issue.kind == "wrong-extension":
        return f"named {said['named']}, is {said['format']}"
    if issue.kind == "small-class":
        return f"{said['label']}: {said['images']:,} images, {said['tested']:,} to test on"
    if issue.kind == "imbalance":
        largest, smallest = (
            f"{said['largest']} {said['images']:,}",
            f"{said['smallest']} {said['images_of_smallest']:,}",
        )
        return f"{largest}, {smallest}: {said['ratio']:g} times"
    size = said.get("size_px")
    return "{} x {} pixels".format(*size) if isinstance(size, tuple) else ""


def _short(text: str) -> str:
    """Long texts keep both ends: of a path, the end says more."""
    if len(text) <= _MAX_WORDS:
        return text
    return f"{text[: _MAX_WORDS // 3]} … {text[-_MAX_WORDS // 2 :]}"


_PAGE = PageTemplate("tellapart.checking", "page.html")

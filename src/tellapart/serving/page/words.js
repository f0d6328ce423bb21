/** What answers are in words. No page here. */

export const VERDICTS = {
  sure: "sure",
  unsure: "unsure",
  unfamiliar: "unfamiliar",
  error: "unreadable",
  failed: "not sent",
};

// Controls, and what turns the direction of writing round or hides: nobody can see what a name with them really is.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Why a file cannot be read, in plainer words than the server's; where there are none, its own. */
const REASONS = {
  "empty-file": "The file is empty.",
  "not-an-image": "This is no image file.",
  "unsupported-format": "It does not read this kind of file. Save it as JPEG or PNG and try that.",
  "unsupported-pixels": "It does not read this kind of image. Save it as JPEG or PNG and try that.",
  "truncated-image": "The end of the file is missing. Copy it again from where it came.",
  "damaged-image": "The file is damaged, or of a rare kind. Copy it again, or save it as JPEG.",
  "too-many-pixels": "The image has too many pixels. Save it smaller and try that.",
  "extreme-aspect-ratio": "This is a line rather than a picture.",
  "decode-timeout": "It took too long to open. Save it as JPEG and try that.",
  "decoder-crashed": "The file is damaged in a way that nothing can open.",
};

/** A file's name as it is shown: what would mislead is marked, and a long one keeps both ends. */
export function shownName(name, longest = 120) {
  const letters = [...name.replace(UNSEEN, "\ufffd")];
  if (letters.length <= longest) return letters.join("");
  return `${letters.slice(0, longest / 2).join("")}…${letters.slice(-longest / 3).join("")}`;
}

/** A share such as 99.2%; never 100% or 0% of what is neither. */
export function percent(share) {
  if (share === null || share === undefined) return "–";
  if (share > 0.9995 && share < 1) return "> 99.9%";
  if (share < 0.0005 && share > 0) return "< 0.1%";
  return `${(100 * share).toFixed(1)}%`;
}

/** A share with its interval, as in the report. */
export function interval(of) {
  if (of?.value == null) return "–";
  const [value, low, high] = [of.value, of.low, of.high].map((share) => `${(100 * share).toFixed(1)}%`);
  return `${value} (${low} to ${high})`;
}

/** A share that somebody chose, such as 95% or 99.9%. */
export const goal = (share) => `${Number((100 * share).toFixed(2))}%`;

export const counted = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/** Names in a row: "a", "a or b", "a, b or c", "a, b, c or 7 others". */
export function listed(names, word, most = 6) {
  const few = names.length > most ? [...names.slice(0, most - 1), `${names.length - most + 1} others`] : names;
  return few.length < 2 ? few.join("") : `${few.slice(0, -1).join(", ")} ${word} ${few.at(-1)}`;
}

/** The classes that cannot be ruled out. */
export const possible = (row) => (row.prediction_set ? row.prediction_set.split("|") : []);

/** The labels given: one, or any number where an image may have several. */
export function given(row, about) {
  if (row.label === null) return [];
  return about.task === "multilabel" ? row.label.split(";").filter(Boolean) : [row.label];
}

/** An answer as a title and what is to be added. */
export function said(photo, about) {
  const { row } = photo;
  if (photo.state === "failed") return { title: "Not sent", note: photo.message };
  if (!row) return { title: photo.state === "sending" ? "Asking …" : "Waiting …", note: "" };
  if (row.verdict === "error") return { title: "Cannot be read", note: REASONS[row.error] ?? sentence(row.message || row.error) };
  const labels = given(row, about);
  if (row.verdict === "unfamiliar") {
    return { title: "Unlike anything it learned from", note: labels.length ? `Closest: ${listed(labels, "and")}.` : "" };
  }
  if (row.verdict === "sure") return { title: labels.length ? listed(labels, "and") : "None of its labels", note: "" };
  const set = possible(row);
  if (about.task === "multilabel") {
    return { title: set.length ? `Perhaps ${listed(set, "and")}` : "Perhaps none of its labels", note: "Look yourself." };
  }
  return { title: set.length > 1 ? listed(set, "or") : `Perhaps ${row.label}`, note: "Look yourself." };
}

/** Decision rules' bands of an answer, such as ["cat", "high"]. */
export const bands = (row, about) =>
  about.decision_rules.map((rule) => [rule.class_name, row[`band_${rule.class_name}`]]).filter(([, band]) => band);

/** Classes with their probabilities, the most probable first. */
export function ranked(photo, about) {
  return [...photo.probs]
    .map((prob, index) => ({ name: about.class_names[index], prob }))
    .sort((a, b) => b.prob - a.prob);
}

export function sentence(text) {
  const full = text.trim();
  return full.charAt(0).toUpperCase() + full.slice(1) + (/[.!?]$/.test(full) ? "" : ".");
}

export function bytes(number) {
  return number >= 2 ** 20 ? `${Math.round(number / 2 ** 20)} MB` : `${Math.round(number / 2 ** 10)} kB`;
}

export function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

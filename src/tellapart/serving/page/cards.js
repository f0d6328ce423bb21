/** One photo as a card: picture, name, verdict, answer, bars. */

import { bar, icon, make } from "./elements.js";
import { VERDICTS, bands, percent, ranked, said, shownName } from "./words.js";

/** How many classes a card shows. */
export const BARS = 3;
const SIDE_PX = 360;
const AT_ONCE = 2;
const TINY_PX = 64;
let made = 0;

/** What a photo counts as among the verdicts; undefined before there is an answer. */
export const verdictOf = (photo) => (photo.state === "failed" ? "failed" : photo.row?.verdict);

/** The verdict as a word with an icon and a colour. */
export function badge(verdict) {
  return make(`span.badge.${verdict}`, icon(verdict), VERDICTS[verdict]);
}

/** The card of a photo, empty. */
export function buildCard(photo, { onOpen, onAgain }) {
  const card = make("li.card");
  const parts = { picture: make("span.picture"), badge: make("span.badge-place"), name: make("bdi.name", shownName(photo.name)) };
  parts.open = make("button.open", parts.picture, parts.badge, parts.name);
  parts.open.type = "button";
  parts.open.title = shownName(photo.name, 400);
  parts.open.addEventListener("click", () => onOpen(photo));
  parts.answer = make("div.answer");
  parts.answer.id = `answer-${++made}`;
  parts.open.setAttribute("aria-describedby", parts.answer.id);
  parts.onAgain = () => onAgain(photo);
  card.append(parts.open, parts.answer);
  photo.card = card;
  photo.parts = parts;
  return card;
}

/** Write into a card what there is to say now. */
export function fillCard(photo, about) {
  const { card, parts } = photo;
  const verdict = verdictOf(photo);
  const { title, note } = said(photo, about);
  card.className = `card ${verdict ?? "open-question"}`;
  parts.badge.replaceChildren(...(verdict ? [badge(verdict)] : []));
  const words = make("p.said", make("strong", title), " ", verdict === "unfamiliar" ? "" : note);
  const content = [words];
  if (verdict === "failed") content.push(againButton(parts.onAgain));
  if (photo.row) content.push(...bands(photo.row, about).map(bandLine));
  if (photo.probs) content.push(bars(ranked(photo, about).slice(0, BARS)));
  parts.answer.replaceChildren(...content);
}

export const bars = (classes) => make("ul.bars", ...classes.map((found) => bar(found, percent(found.prob))));

export const bandLine = ([name, band]) => make("p.band", make("bdi", name), ": ", make("strong", band));

function againButton(onAgain) {
  const button = make("button.again", "Try again");
  button.type = "button";
  button.addEventListener("click", onAgain);
  return button;
}

/** Small pictures, made when their card comes into view, two at a time; of large photos nothing large is kept. */
export class Thumbnails {
  constructor() {
    this.line = [];
    this.running = 0;
    this.watcher = new IntersectionObserver((entries) => this.seen(entries), { rootMargin: "400px" });
    this.photos = new WeakMap();
  }

  watch(photo) {
    this.photos.set(photo.card, photo);
    this.watcher.observe(photo.card);
  }

  /** Of a photo that is taken away. */
  release(photo) {
    if (photo.card) this.watcher.unobserve(photo.card);
    if (photo.thumbnail) URL.revokeObjectURL(photo.thumbnail);
    photo.gone = true;
  }

  seen(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.watcher.unobserve(target);
      this.line.push(this.photos.get(target));
    }
    this.fill();
  }

  fill() {
    while (this.running < AT_ONCE && this.line.length) this.run(this.line.shift());
  }

  async run(photo) {
    if (photo.gone) return;
    this.running += 1;
    photo.parts.picture.replaceChildren(await this.picture(photo));
    this.running -= 1;
    this.fill();
  }

  async picture(photo) {
    try {
      const { blob, tiny } = await shrink(photo.file);
      if (photo.gone) return "";
      photo.thumbnail = URL.createObjectURL(blob);
      const image = make(tiny ? "img.tiny" : "img");
      image.alt = "";
      image.src = photo.thumbnail;
      return image;
    } catch {
      return placeholder(photo.name);
    }
  }
}

/** In place of a picture that the browser cannot show. */
export function placeholder(name) {
  const ending = /\.([a-z0-9]{1,5})$/i.exec(name)?.[1] ?? "file";
  return make("span.placeholder", icon("file"), ending.toUpperCase());
}

async function shrink(file) {
  const bitmap = await createImageBitmap(file);
  try {
    const scale = Math.min(1, SIDE_PX / Math.min(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.min(2 * SIDE_PX, Math.max(1, Math.round(bitmap.width * scale)));
    canvas.height = Math.min(2 * SIDE_PX, Math.max(1, Math.round(bitmap.height * scale)));
    const drawing = canvas.getContext("2d");
    drawing.imageSmoothingQuality = "high";
    drawing.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 0.85));
    if (!blob) throw new Error("no picture");
    return { blob, tiny: Math.max(bitmap.width, bitmap.height) <= TINY_PX };
  } finally {
    bitmap.close();
  }
}

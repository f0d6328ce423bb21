/** One photo, large: every class, and on demand where the evidence for one lies. */

import { badge, bandLine, bars, placeholder, verdictOf } from "./cards.js";
import { byId, fillSelect, make } from "./elements.js";
import { Away, ask } from "./uploads.js";
import { bands, goal, percent, possible, ranked, said, sentence, shownName } from "./words.js";

const MANY = 12;

/** The dialog; what it shows is chosen by whoever opens it. */
export class Detail {
  /** @param {(photo, step: number) => object|undefined} neighbour the photo before (-1) or after (1) */
  constructor(neighbour) {
    this.neighbour = neighbour;
    this.dialog = byId("detail");
    this.addresses = [];
    byId("close").addEventListener("click", () => this.dialog.close());
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    byId("heat").addEventListener("click", () => this.toggleHeat());
    byId("heat-class").addEventListener("change", () => this.showHeat(true));
    this.dialog.addEventListener("close", () => this.leave());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => this.key(event));
  }

  open(photo, about) {
    this.leave();
    Object.assign(this, { photo, about, heatOn: false, heats: new Map(), control: new AbortController() });
    byId("detail-name").replaceChildren(make("bdi", shownName(photo.name, 400)));
    byId("detail-answer").replaceChildren(...this.answer());
    byId("previous").disabled = !this.neighbour(photo, -1);
    byId("next").disabled = !this.neighbour(photo, 1);
    const classes = photo.probs ? ranked(photo, about) : [];
    byId("heat-tools").hidden = !classes.length;
    fillSelect(byId("heat-class"), classes.map(({ name, prob }) => [name, `${name} (${percent(prob)})`]));
    byId("heat-class").selectedIndex = 0;
    byId("heat").setAttribute("aria-pressed", "false");
    byId("heat-note").textContent = "";
    this.showPhoto();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Give back what was held for the photo. */
  leave() {
    this.control?.abort();
    for (const address of this.addresses.splice(0)) URL.revokeObjectURL(address);
    byId("stage").replaceChildren();
  }

  answer() {
    const { photo, about } = this;
    const verdict = verdictOf(photo);
    const { title, note } = said(photo, about);
    const lines = [make("p.detail-title", ...(verdict ? [badge(verdict), " "] : []), make("strong", title))];
    if (note) lines.push(make("p", note));
    if (photo.row) lines.push(...bands(photo.row, about).map(bandLine), ...this.why());
    if (photo.probs) lines.push(...this.classes());
    return lines;
  }

  /** What the verdict means. */
  why() {
    const { row } = this.photo;
    const sure = this.about.coverage && goal(this.about.coverage.default);
    if (row.verdict === "sure") return [make("p.soft", "No doubt is left, and the photo is like those it learned from.")];
    if (row.verdict === "unsure" && this.about.task === "multilabel") {
      return [make("p.soft", "For some labels it cannot say whether the photo has them.")];
    }
    if (row.verdict === "unsure" && possible(row).length > 1 && sure) {
      return [make("p.soft", `It cannot rule these out. Of all its lists, ${sure} are made to hold the right class.`)];
    }
    if (row.verdict === "unfamiliar") return [make("p.soft", "Do not rely on the bars below: they say only which class is closest.")];
    return [];
  }

  classes() {
    const all = ranked(this.photo, this.about);
    const shown = [make("h3", "Classes"), bars(all.slice(0, MANY))];
    if (all.length > MANY) {
      const rest = make("details", make("summary", `All ${all.length.toLocaleString("en")} classes`));
      rest.addEventListener("toggle", () => rest.childElementCount < 2 && rest.append(bars(all.slice(MANY))));
      shown.push(rest);
    }
    return shown;
  }

  showPhoto() {
    const image = make("img");
    image.alt = "The photo";
    image.addEventListener("error", () => image.replaceWith(this.unshown()));
    image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth <= 64));
    image.src = this.hold(this.photo.file);
    byId("stage").replaceChildren(image);
  }

  unshown() {
    const { row } = this.photo;
    const note = row && row.verdict !== "error" ? "This browser cannot show the file; the model could read it." : "";
    return make("div.unshown", placeholder(this.photo.name), make("p.soft", note));
  }

  hold(blob) {
    const address = URL.createObjectURL(blob);
    this.addresses.push(address);
    return address;
  }

  toggleHeat() {
    return this.showHeat(!this.heatOn);
  }

  /** The heat map over the photo, or the photo alone. */
  async showHeat(on) {
    this.heatOn = on;
    const { photo } = this;
    const name = byId("heat-class").value;
    byId("heat").setAttribute("aria-pressed", String(on));
    byId("stage").querySelector(".heat")?.remove();
    this.cover(false);
    byId("heat-note").textContent = on ? "Looking …" : "";
    if (!on) return;
    try {
      const address = this.heats.get(name) ?? this.hold(await this.askHeat(name));
      if (this.photo !== photo || !this.heatOn || byId("heat-class").value !== name) return;
      this.heats.set(name, address);
      this.layHeat(address, name);
      byId("heat-note").textContent = `Orange speaks for ${name}, blue against it.`;
    } catch (error) {
      if (error.name === "AbortError" || this.photo !== photo) return;
      byId("heat-note").textContent = error instanceof Away ? "The server does not answer." : sentence(error.message);
    }
  }

  async askHeat(name) {
    const query = new URLSearchParams({ model: this.about.name, class: name });
    const options = { method: "POST", body: this.photo.file, signal: this.control.signal };
    return (await ask(`explain?${query}`, options)).blob();
  }

  layHeat(address, name) {
    const heat = make("img.heat");
    heat.alt = `Where the evidence for ${name} lies`;
    // The model saw a square; where the photo was squeezed into it, the picture is drawn out again.
    const { naturalWidth: width, naturalHeight: height } = byId("stage").querySelector("img") ?? {};
    const ratio = width && this.about.resize === "squash" ? width / height : 1;
    heat.style.aspectRatio = ratio;
    heat.style.width = `min(100cqw, ${100 * ratio}cqh)`;
    heat.style.height = "auto";
    heat.src = address;
    // It shows the photo, too, as the model saw it: where that is a part of it, the rest would stick out at another scale.
    this.cover(true);
    byId("stage").append(heat);
  }

  cover(on) {
    byId("stage").firstElementChild?.classList.toggle("covered", on);
  }

  key(event) {
    if (event.target instanceof HTMLSelectElement) return;
    if (event.key === "ArrowLeft") this.step(-1);
    if (event.key === "ArrowRight") this.step(1);
  }

  step(by) {
    const photo = this.neighbour(this.photo, by);
    if (photo) this.open(photo, this.about);
  }
}

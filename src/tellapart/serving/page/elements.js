/** Elements, made of text only: nothing that a file or a model is named can become markup. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/**
 * An element.
 * @param {string} kind such as "p" or "p.soft.wide"
 * @param {...(Node|string)} content
 */
export function make(kind, ...content) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  element.classList.add(...classes);
  element.append(...content);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.classList.add("icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Classes as bars; each also says its share in words. */
export function bar({ name, prob }, shown) {
  const fill = make("i");
  fill.style.width = `${100 * prob}%`;
  const track = make("span.track", fill);
  track.setAttribute("aria-hidden", "true");
  return make("li", make("bdi.bar-name", name), make("span.bar-share", shown), track);
}

/** Buttons or options anew, with what was chosen kept. */
export function fillSelect(select, options) {
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

/** What the model is: how good, at what, and what it is not for. */

import { make } from "./elements.js";
import { VERDICTS, bytes, counted, goal, interval, listed } from "./words.js";
import { badge } from "./cards.js";

const FINE = ["excellent", "very good", "good"];
const METRICS = { precision: "right when it says so", recall: "found", f1: "F1", ap: "average precision" };

/** The whole view, from ``GET /model``. */
export function aboutView(about) {
  const parts = [quality(about), verdicts(about), perClass(about), trust(about), limits(about), facts(about)];
  return [make("h1", "About ", make("bdi", about.name)), ...parts.filter(Boolean)];
}

const part = (title, ...content) => make("section", make("h2", title), ...content);
const list = (sentences) => make("ul.plain", ...sentences.map((text) => make("li", text)));

function quality({ test }) {
  if (!test) return part("How good it is", make("p", "Nobody knows: the file holds no measurements on test images."));
  const grade = make(FINE.includes(test.grade) ? "p.grade.fine" : "p.grade", test.grade);
  const section = part("How good it is", make("p.said-large", test.answer), grade, ...test.basis.map((text) => make("p", text)));
  if (test.warnings.length) section.append(make("div.alert", make("h3", "But"), list(test.warnings)));
  return section;
}

function verdicts({ test }) {
  const found = Object.entries(test?.verdicts ?? {}).filter(([name, of]) => VERDICTS[name] && of.n);
  if (!found.length) return null;
  const rows = found.map(([name, of]) => [badge(name), interval(of.share), interval(of.accuracy)]);
  const note = "Answers that are not sure are for a person to look at.";
  return part("When it knows, and when not", make("p", note), table("", ["verdict", "of the test images", "right"], rows));
}

function perClass({ test, class_names: names }) {
  if (!test?.per_class.length) return part("Classes", make("p", listed(names, "and", 1000)));
  const metrics = Object.keys(METRICS).filter((name) => name !== "f1" && test.per_class.some((row) => row[name]));
  const rows = test.per_class.map((row) => [
    make("bdi", row.class_name),
    row.n?.toLocaleString("en") ?? "–",
    ...metrics.map((name) => share(row[name])),
  ]);
  const caption = "In brackets: 95% confidence intervals.";
  return part("Class by class", table(caption, ["class", "test images", ...metrics.map((name) => METRICS[name])], rows));
}

function share(of) {
  if (of?.value == null) return "–";
  const fill = make("i");
  fill.style.width = `${100 * of.value}%`;
  const track = make("span.track", fill);
  track.setAttribute("aria-hidden", "true");
  return make("span.share", interval(of), track);
}

function table(caption, head, rows) {
  const whole = make("table");
  if (caption) whole.append(make("caption", caption));
  const titles = head.map((text) => scoped(make("th", text), "col"));
  const body = rows.map(([first, ...rest]) =>
    make("tr", scoped(make("th", first), "row"), ...rest.map((content) => make("td", content))),
  );
  whole.append(make("thead", make("tr", ...titles)), make("tbody", ...body));
  const scroll = make("div.scroll", whole);
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", head.join(", "));
  return scroll;
}

function scoped(cell, scope) {
  cell.scope = scope;
  return cell;
}

function trust({ task, coverage, familiarity, calibration, decision_rules: rules }) {
  const said = [`Its probabilities were set right on ${counted(calibration.n, "image")}: of the answers with 80%, about 80 of 100 should be right.`];
  if (coverage) said.push(`${task === "multilabel" ? labelsList(coverage) : classesList(coverage)} (set on ${counted(coverage.n, "image")}).`);
  if (familiarity) {
    said.push(
      "A photo unlike any that it learned from is called unfamiliar. Of photos like those it learned from, " +
        `about ${goal(familiarity.false_alarms)} are called so by mistake.`,
    );
  } else said.push("It cannot tell when a photo is unlike anything it learned from.");
  for (const rule of rules) {
    said.push(`The probability of “${rule.class_name}” is also given in words: ${listed(rule.bands, "or")}.`);
  }
  return part("What its words mean", list(said));
}

const classesList = (coverage) =>
  "With each answer goes a list of the classes that it cannot rule out. One class on the list: sure; several: unsure. " +
  `The list is made to hold the right class for ${goal(coverage.default)} of the photos`;

const labelsList = (coverage) =>
  "With each answer goes a list of the labels that it cannot rule out. Sure: no label is left in doubt. " +
  `The list is made to hold, on average, ${goal(coverage.default)} of a photo’s labels`;

const limits = (about) => part("Limits", list(about.limits));

function facts(about) {
  const { weights, uploads } = about;
  const lines = [
    ["classes", about.class_names.length.toLocaleString("en")],
    ["several labels a photo", about.task === "multilabel" ? "yes" : "no"],
    ["sees", `${about.input_size_px} × ${about.input_size_px} pixels`],
    ["recipe", about.recipe],
    ["pretrained weights", weights && `${weights.name}: ${weights.source}`],
    ["their licence", weights?.license],
    ["made", new Date(about.created).toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" })],
    ["version", about.version],
    ["reads", `${uploads.formats.join(", ")}; up to ${bytes(uploads.max_image_bytes)} a photo`],
  ];
  const given = lines.filter(([, value]) => value);
  return part("The file", make("dl", ...given.flatMap(([name, value]) => [make("dt", name), make("dd", value)])));
}

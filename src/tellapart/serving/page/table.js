/** All answers as a CSV file, with the columns of ``tellapart predict``. */

const COLUMNS = ["path", "label", "prob", "verdict", "familiarity", "prediction_set", "error", "message"];
const FORMULA = /^[=+\-@\t\r]/;

/**
 * A cell. Spreadsheets take text that begins like a formula for one: an apostrophe keeps it text.
 * @param {string|number|null|undefined} value
 */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The whole file; it begins with the mark by which spreadsheets know UTF-8. */
export function csv(photos, about) {
  const bands = about.decision_rules.map((rule) => `band_${rule.class_name}`);
  const head = [...COLUMNS, ...bands, ...about.class_names.map((name) => `prob_${name}`)];
  const lines = photos.map((photo) => {
    const row = photo.row ?? { error: "not-sent", message: photo.message || "no answer yet" };
    const probs = about.class_names.map((_, index) => photo.probs?.[index]);
    return [photo.name, ...[...COLUMNS.slice(1), ...bands].map((column) => row[column]), ...probs];
  });
  return `\ufeff${[head, ...lines].map((cells) => cells.map(cell).join(",")).join("\r\n")}\r\n`;
}

/** Hand a file to the person. */
export function save(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

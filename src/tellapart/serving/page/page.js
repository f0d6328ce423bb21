/** The page: photos in, answers out; what the person chose to see of them. */

import { aboutView } from "./about.js";
import { BARS, Thumbnails, buildCard, fillCard, verdictOf } from "./cards.js";
import { Detail } from "./detail.js";
import { byId, fillSelect, icon, make } from "./elements.js";
import { csv, save } from "./table.js";
import { Away, Queue, Refusal, ask, filesOfDrop, filesOfInput, isHidden } from "./uploads.js";
import { VERDICTS, bytes, counted, duration, given, listed, sentence } from "./words.js";

const PAGE = 60;
const EVERY_MS = 120;
const TELL_EVERY_MS = 5000;
const UNREADABLE = "It cannot be read: was it moved, changed or closed to you?";
const LEAST_SURE = ["unfamiliar", "unsure", "sure", "error", "failed", undefined];

const state = {
  about: null,
  photos: [],
  verdict: "all",
  shown: PAGE,
  left_out: 0,
  batch: { began: 0, answered: 0 },
  refreshing: 0,
  told: 0,
};
const queue = new Queue(sendPhoto);
const thumbnails = new Thumbnails();
const detail = new Detail((photo, step) => {
  const photos = chosen();
  return photos[photos.indexOf(photo) + step];
});

// ---- photos

/** Take in what was dropped, chosen, pasted or photographed. */
function addFiles(found) {
  const files = found.filter((one) => !isHidden(one));
  state.left_out += found.length - files.length;
  const photos = files.map(({ file, name }) => ({ file, name, state: "waiting", changed: true }));
  if (!photos.length) return tell("No file was found in there.");
  for (const photo of photos) state.photos.push(photo);
  beginBatch();
  queue.add(photos);
  refresh();
}

function beginBatch() {
  if (!isBusy()) state.batch = { began: performance.now(), answered: 0 };
}

const isBusy = () => queue.running > 0 || queue.waiting.length > 0;

/** Ask about one photo; never throws. */
async function sendPhoto(photo, signal) {
  if (!photo.file) return change(photo, { state: "failed", message: UNREADABLE });
  change(photo, { state: "sending", message: "" });
  try {
    const row = tooLarge(photo) ?? (await predict(photo, signal));
    change(photo, { state: "answered", row: withoutProbs(row), probs: probsOf(row) });
    state.batch.answered += 1;
  } catch (error) {
    await explainFailure(photo, error);
  }
}

async function predict(photo, signal) {
  // Said whether the server collects or not: it may have been started anew since it was asked.
  const keep = state.about.collecting && byId("keep").checked;
  const query = new URLSearchParams({ model: state.about.name, probs: "true", keep: String(keep) });
  const onBusy = () => setTrouble("Busy.", "The server has much to do; the photos wait their turn.");
  const answer = await ask(`predict?${query}`, { method: "POST", body: photo.file, signal }, onBusy);
  const { predictions } = await answer.json();
  if (byId("trouble").dataset.title === "Busy.") setTrouble();
  return predictions[0];
}

/** The server would say the same, after the whole file had been sent. */
function tooLarge({ file }) {
  const limit = state.about.uploads.max_image_bytes;
  if (!file || file.size <= limit) return null;
  return { verdict: "error", error: "too-many-bytes", message: `the file is larger than ${bytes(limit)}` };
}

/** K probabilities in little room. */
function probsOf(row) {
  return row.verdict === "error" ? null : Float32Array.from(state.about.class_names, (name) => row[`prob_${name}`]);
}

const withoutProbs = (row) => Object.fromEntries(Object.entries(row).filter(([key]) => !key.startsWith("prob_")));

async function explainFailure(photo, error) {
  const fail = (message) => change(photo, { state: "failed", message });
  if (error.name === "AbortError") return fail("Cancelled.");
  if (error instanceof Refusal) {
    if (error.status === 401) noToken();
    return fail(sentence(error.message));
  }
  if (!(error instanceof Away)) return fail("The server’s answer made no sense.");
  if (!(await isReadable(photo.file))) return fail(UNREADABLE);
  fail("The server did not answer.");
  if (!(await isThere())) serverAway();
}

const isReadable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);
const isThere = () => fetch("models").then(() => true, () => false);

function sendAgain(photos) {
  beginBatch();
  for (const photo of photos) change(photo, { state: "waiting", message: "", row: null, probs: null });
  setTrouble();
  queue.held = false;
  queue.add(photos);
  refresh();
}

function change(photo, values) {
  Object.assign(photo, values, { changed: true });
  refresh();
}

const notSent = () => state.photos.filter((photo) => photo.state === "failed");

function cancel() {
  setTrouble();
  for (const photo of queue.cancel()) change(photo, { state: "failed", message: "Cancelled." });
}

function clear() {
  queue.cancel();
  for (const photo of state.photos) thumbnails.release(photo);
  Object.assign(state, { photos: [], verdict: "all", shown: PAGE, left_out: 0 });
  setTrouble();
  byId("cards").replaceChildren();
  tell("All photos are cleared.");
  refresh();
  byId("choose-photos").focus();
}

// ---- trouble

/** Say what is wrong above everything else; without words, that nothing is. */
function setTrouble(title = "", text = "", canRepeat = false) {
  const box = byId("trouble");
  box.hidden = !title;
  box.dataset.title = title;
  byId("trouble-title").textContent = title;
  byId("trouble-text").textContent = text;
  byId("trouble-again").hidden = !canRepeat;
}

function serverAway() {
  queue.hold();
  setTrouble("The server does not answer.", "Is it still running, and are you still connected? Nothing is lost: try again when it is back.", true);
}

function noToken() {
  queue.hold();
  setTrouble("This page needs its token.", "Open the whole link that the server printed when it was started.", true);
}

/** Go on after trouble: with the photos, or from the start. */
async function again() {
  if (!state.about) return start();
  if (!(await isThere())) return serverAway();
  sendAgain(notSent());
  queue.resume();
}

// ---- what is shown

/** Bring the page up to date soon; many changes at once cost one. */
function refresh() {
  state.refreshing ||= setTimeout(() => {
    state.refreshing = 0;
    showNow();
  }, EVERY_MS);
}

function showNow() {
  const any = state.photos.length > 0;
  byId("answers").hidden = !any;
  byId("drop").classList.toggle("small", any);
  if (!any) return;
  const counts = countVerdicts();
  showProgress(counts);
  showFilters(counts);
  showCards();
}

function countVerdicts() {
  const counts = { all: state.photos.length };
  for (const photo of state.photos) {
    const verdict = verdictOf(photo);
    if (verdict) counts[verdict] = (counts[verdict] ?? 0) + 1;
  }
  return counts;
}

function showProgress(counts) {
  const total = state.photos.length;
  const failed = counts.failed ?? 0;
  const answered = state.photos.filter((photo) => photo.state === "answered").length;
  const open = total - answered - failed;
  byId("progress-bar").max = total;
  byId("progress-bar").value = answered + failed;
  const cancelButton = byId("cancel");
  cancelButton.textContent = open ? "Cancel" : "Send the others";
  cancelButton.hidden = !open && !failed;
  cancelButton.onclick = open ? cancel : () => sendAgain(notSent());
  byId("progress").classList.toggle("done", !open);
  const text = open ? underWay(answered, total, open) : outcome(answered, counts);
  byId("progress-text").textContent = text;
  if (!open || Date.now() - state.told > TELL_EVERY_MS) tell(open ? `${answered} of ${total} answered` : text);
}

function underWay(answered, total, open) {
  const seconds = (performance.now() - state.batch.began) / 1000;
  const rate = state.batch.answered / seconds;
  const text = `${answered.toLocaleString("en")} of ${counted(total, "photo")} answered`;
  if (queue.held) return `${text}; the others wait`;
  if (seconds < 1 || !rate) return text;
  return `${text}, ${rate < 10 ? rate.toFixed(1) : Math.round(rate)} a second, about ${duration(open / rate)} left`;
}

function outcome(answered, counts) {
  const kinds = ["sure", "unsure", "unfamiliar", "error", "failed"].filter((name) => counts[name]);
  const parts = kinds.map((name) => `${counts[name].toLocaleString("en")} ${VERDICTS[name]}`);
  const hidden = state.left_out ? ` ${counted(state.left_out, "hidden file")} left out.` : "";
  return `${counted(answered, "photo")} answered: ${listed(parts, "and")}.${hidden}`;
}

/** Buttons made once, so that the focus stays where it is. */
function showFilters(counts) {
  const group = byId("filters");
  if (!group.childElementCount) group.append(...["all", ...Object.keys(VERDICTS)].map(filterButton));
  for (const button of group.children) {
    const { verdict } = button.dataset;
    button.lastChild.textContent = (counts[verdict] ?? 0).toLocaleString("en");
    button.setAttribute("aria-pressed", String(state.verdict === verdict));
    button.hidden = verdict === "failed" && !counts.failed && state.verdict !== verdict;
  }
}

function filterButton(verdict) {
  const picture = verdict === "all" ? [] : [icon(verdict)];
  const button = make(`button.filter.${verdict}`, ...picture, verdict === "all" ? "all" : VERDICTS[verdict], " ", make("b"));
  button.type = "button";
  button.dataset.verdict = verdict;
  button.addEventListener("click", () => show({ verdict }));
  return button;
}

function show(choice) {
  Object.assign(state, choice, { shown: PAGE });
  showNow();
}

/** The photos that the person wants to see, in order. */
function chosen() {
  const className = byId("class-filter").value;
  const photos = state.photos.filter(
    (photo) =>
      (state.verdict === "all" || verdictOf(photo) === state.verdict) &&
      (!className || (photo.row && given({ label: null, ...photo.row }, state.about).includes(className))),
  );
  return byId("order").value === "least" ? photos.sort(byCertainty) : photos;
}

function byCertainty(a, b) {
  const [first, second] = [a, b].map((photo) => LEAST_SURE.indexOf(verdictOf(photo)));
  return first - second || (a.row?.prob ?? 0) - (b.row?.prob ?? 0);
}

/** Cards in their order; those that stay in place are not touched. */
function showCards() {
  const photos = chosen();
  const list = byId("cards");
  photos.slice(0, state.shown).forEach((photo, place) => {
    if (!photo.card) {
      buildCard(photo, { onOpen: (one) => detail.open(one, state.about), onAgain: (one) => sendAgain([one]) });
      thumbnails.watch(photo);
    }
    if (photo.changed) fillCard(photo, state.about);
    photo.changed = false;
    if (list.children[place] !== photo.card) list.insertBefore(photo.card, list.children[place] ?? null);
  });
  while (list.childElementCount > Math.min(photos.length, state.shown)) list.lastChild.remove();
  byId("none").hidden = photos.length > 0;
  byId("more-line").hidden = photos.length <= state.shown;
}

function showMore(count = PAGE) {
  state.shown += count;
  showNow();
}

/** More when the end comes near, again and again while it stays near. */
function showMoreAtEnd() {
  const end = byId("more-line");
  const watcher = new IntersectionObserver(
    ([entry]) => {
      if (!entry.isIntersecting) return;
      showMore();
      watcher.unobserve(end);
      watcher.observe(end);
    },
    { rootMargin: "600px" },
  );
  watcher.observe(end);
}

/** For those who hear the page. */
function tell(text) {
  if (byId("live").textContent === text) return;
  state.told = Date.now();
  byId("live").textContent = text;
}

// ---- the model, and the two views

async function start() {
  try {
    const { models } = await (await ask("models")).json();
    fillSelect(byId("model-name"), models.map(({ name }) => [name, name]));
    byId("chooser").hidden = models.length < 2;
    await chooseModel();
    setTrouble();
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) noToken();
    else serverAway();
  }
}

/** Take the model chosen; photos that are there are asked about anew. */
async function chooseModel() {
  const name = byId("model-name").value;
  const about = await (await ask(`model?${new URLSearchParams({ model: name })}`)).json();
  if (byId("model-name").value !== name) return; // another was chosen meanwhile
  state.about = about;
  showModel(state.about);
  if (!state.photos.length) return;
  queue.cancel();
  sendAgain(state.photos);
}

function showModel(about) {
  const names = about.class_names;
  document.title = `tellapart: ${about.name}`;
  const question = about.task === "multilabel" ? "What is on it:" : "Which is it:";
  byId("question").replaceChildren(`${question} `, make("bdi", listed(names, "or", 6)), "?");
  // Room for what will come, so that nothing moves when it does.
  byId("cards").style.setProperty("--bars", Math.min(BARS, names.length));
  byId("lead").textContent = "Give it photos. It says what is on them, and when it does not know.";
  byId("formats").textContent = `It reads ${listed(about.uploads.formats, "and", 20)}.`;
  byId("privacy").textContent = about.collecting
    ? ""
    : "Photos go to this server and nowhere else. It answers and forgets them.";
  byId("privacy").hidden = about.collecting;
  byId("consent").hidden = !about.collecting;
  fillSelect(byId("class-filter"), [["", "all"], ...names.map((name) => [name, name])]);
  byId("view-model").replaceChildren(...aboutView(about));
  route();
}

function route() {
  const model = location.hash === "#model";
  byId("view-model").hidden = !model || !state.about;
  byId("view-photos").hidden = model || !state.about;
  for (const [id, here] of [["to-photos", !model], ["to-model", model]]) {
    if (here) byId(id).setAttribute("aria-current", "page");
    else byId(id).removeAttribute("aria-current");
  }
}

// ---- what the person does

function listen() {
  const on = (id, event, then) => byId(id).addEventListener(event, then);
  for (const [button, input] of [["choose-photos", "photos-input"], ["choose-folder", "folder-input"], ["take-photo", "camera-input"]]) {
    on(button, "click", () => byId(input).click());
    on(input, "change", () => {
      addFiles(filesOfInput(byId(input)));
      byId(input).value = "";
    });
  }
  on("trouble-again", "click", again);
  on("download", "click", () => save(csv(state.photos, state.about), `${state.about.name}-answers.csv`));
  on("clear", "click", clear);
  on("class-filter", "change", () => show({}));
  on("order", "change", () => show({}));
  on("more", "click", () => showMore());
  on("model-name", "change", () => chooseModel().catch(serverAway));
  showMoreAtEnd();
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("content").focus();
  });
  addEventListener("hashchange", () => {
    route();
    scrollTo(0, 0);
    byId("content").focus({ preventScroll: true });
  });
  addEventListener("beforeprint", () => state.about && showMore(state.photos.length));
  addEventListener("paste", (event) => event.clipboardData.files.length && addFiles(filesOfInput(event.clipboardData)));
  listenToDrops();
}

/** Files may be dropped anywhere; the browser must not open them in place of the page. */
function listenToDrops() {
  const isFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (over) => byId("drop").classList.toggle("over", over);
  addEventListener("dragover", (event) => {
    if (!isFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  addEventListener("drop", async (event) => {
    if (!isFiles(event)) return;
    event.preventDefault();
    mark(false);
    const found = filesOfDrop(event.dataTransfer);
    if (!state.about) return;
    if (location.hash === "#model") location.hash = "#photos";
    addFiles(await found);
  });
}

byId("no-script").remove();
listen();
route();
start();

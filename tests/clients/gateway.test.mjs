// The JavaScript client against a gateway with a simulated engine: GATEWAY, one that takes SMALL streams: SMALL_GATEWAY, and
// ENGINE_PID, which the last test kills.
import assert from "node:assert/strict";
import {test} from "node:test";
import {AndesClient, InterruptedAnswerError, StatusError} from "../../clients/javascript/andes-client.mjs";

const {GATEWAY, SMALL, SMALL_GATEWAY, ENGINE_PID} = process.env;
const model = "simulated";

class Page extends EventTarget {
  hidden = false;

  turn(hidden) {
    this.hidden = hidden;
    this.dispatchEvent(new Event("visibilitychange"));
  }
}

const client = (url = GATEWAY, options = {}) => new AndesClient({base_url: `${url}/v1/`, api_key: "sk-any", ...options});

async function all(answer) {
  const pieces = [];
  for await (const piece of answer) pieces.push(piece);
  return pieces;
}

/** As many streams as the small gateway takes, all begun. */
async function fill(options = {}) {
  const asked = Array.from({length: SMALL}, () => client(SMALL_GATEWAY).stream("x", {model, max_tokens: 4000, ...options}));
  const answers = await Promise.all(asked);
  await Promise.all(answers.map(answer => answer[Symbol.asyncIterator]().next()));
  return answers;
}

test("a stream says what its reader got", async () => {
  const expectations = {reading_speed: 200, first_token_s: 2.5, pace: true};
  const answer = await client().stream("Tell me more.", {model, max_tokens: 30, ...expectations});
  const pieces = await all(answer);
  assert.equal(pieces.join(""), answer.text);
  assert.ok(pieces.length > 10);
  assert.equal(answer.finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 30);
  assert.equal(answer.experience.tokens, 30);
  assert.ok(answer.experience.qoe > 0 && answer.experience.qoe <= 1);
  const {tds, ttft_target_s, tokens} = answer.gateway_report;
  assert.deepEqual({tds, ttft_target_s, tokens}, {tds: 200, ttft_target_s: 2.5, tokens: 30});
  assert.equal(answer.model, model);
  assert.ok(answer.request_id);
});

test("the class says what the caller does not", async () => {
  const answer = await client().stream([{role: "user", content: "x"}], {model, max_tokens: 3, klass: "agent"});
  await all(answer);
  assert.equal(answer.experience.tokens, 3);
  const {reading_speed, first_token_s} = answer.reader;
  assert.deepEqual({reading_speed, first_token_s}, {reading_speed: 20, first_token_s: 2});
});

test("a full service is asked again when it says", async () => {
  const held = await fill();
  const impatient = client(SMALL_GATEWAY, {max_wait_s: 0});
  const refused = error => error instanceof StatusError && error.status === 429 && Number(error.retry_after) > 0;
  await assert.rejects(impatient.stream("x", {model, max_tokens: 3}), refused);
  const waits = [];
  const on_wait = (seconds, reason) => { waits.push([seconds, reason]); held.pop().close(); };
  const answer = await client(SMALL_GATEWAY, {max_wait_s: 600}).stream("x", {model, max_tokens: 3, on_wait});
  await all(answer);
  assert.ok(waits.length > 0 && waits[0][0] > 0 && waits[0][1]);
  assert.ok(answer.experience.ttft_s >= waits[0][0] - 0.01, "the wait counts");
  for (const each of held) each.close();
});

test("a caller who aborts, while it waits and while it reads", async () => {
  const waiting = new AbortController(), reading = new AbortController();
  const [held] = await fill({signal: reading.signal});
  const pieces = held[Symbol.asyncIterator]();
  const on_wait = () => waiting.abort();
  const patient = client(SMALL_GATEWAY, {max_wait_s: 600});
  await assert.rejects(patient.stream("x", {model, on_wait, signal: waiting.signal}), {name: "AbortError"});
  reading.abort(new Error("enough"));
  await assert.rejects(async () => { while (!(await pieces.next()).done); }, {message: "enough"});
  await assert.rejects(patient.stream("x", {model, signal: reading.signal}), {message: "enough"});
  for await (const _ of await patient.stream("x", {model, max_tokens: 4000})) break; // hangs up: the next one has its place
  await all(await patient.stream("x", {model, max_tokens: 3}));
});

test("a hidden page is shown nothing, and its reader's clock stands", async () => {
  const page = new Page();
  page.hidden = true;
  const answer = await client(GATEWAY, {page}).stream("x", {model, max_tokens: 20, reading_speed: 1000, pace: true});
  let shown = false;
  const whole = all(answer).then(pieces => { shown = true; return pieces; });
  await all(await client().stream("x", {model, max_tokens: 200})); // time enough for the whole of the hidden answer to come
  assert.equal(answer.text, "");
  assert.equal(answer.experience.ttft_s, null);
  const turned_ms = performance.now();
  page.turn(false);
  assert.ok((await whole).length > 1 && shown);
  assert.ok(answer.experience.ttft_s <= (performance.now() - turned_ms) / 1000);
  assert.equal(answer.experience.tokens, 20);
});

test("a gateway is told what was shown, and when the page is hidden", async () => {
  const page = new Page(), real = globalThis.fetch, reports = [];
  let wake = () => {};
  globalThis.fetch = async (url, options) => {
    const response = await real(url, options);
    if (!url.endsWith("/reader")) return response;
    reports.push({url, status: response.status, ...JSON.parse(options.body)});
    wake();
    return response;
  };
  const told = async right => {
    while (!reports.some(right)) await new Promise(resolve => { wake = resolve; });
  };
  try {
    const answer = await client(GATEWAY, {page}).stream("x", {model, max_tokens: 4000, reading_speed: 1000, pace: true});
    const pieces = answer[Symbol.asyncIterator]();
    await pieces.next();
    const shown = [...answer.text].length;
    for (const hidden of [true, false]) {
      page.turn(hidden);
      await told(report => report.visible === !hidden && report.characters === shown && report.status === 204);
    }
    const so_far = reports.length;
    await told((report, k) => k >= so_far && report.status === 204 && report.at_s > reports[0].at_s); // by the clock
    answer.close();
    await assert.rejects(pieces.next(), {name: "AbortError"});
    const quiet = await client(GATEWAY, {page}).stream("x", {model, max_tokens: 3, report_every_s: null});
    page.turn(true);
    await all(quiet);
    assert.equal(new Set(reports.map(report => report.url)).size, 1);
  } finally {
    globalThis.fetch = real;
  }
});

test("arguments that make no sense are named before anything is sent", async () => {
  const nowhere = client("http://127.0.0.1:1");
  await assert.rejects(nowhere.stream("x", {model, n: 2}), /n cannot/);
  for (const messages of [undefined, 5, ["x"], {role: "user"}]) {
    await assert.rejects(nowhere.stream(messages, {model}), {name: "RangeError", message: /messages must be text or a list/});
  }
  const circle = {}, on_wait = () => assert.fail("it is no fault of the server");
  circle.inside = circle;
  await assert.rejects(client(GATEWAY).stream("x", {model, on_wait, metadata: circle}), TypeError);
  await assert.rejects(client(GATEWAY, {api_key: "ключ"}).stream("x", {model, on_wait}), TypeError);
  await all(await client(GATEWAY).stream("x", {model, max_tokens: 2, on_chunk: null, on_wait: null}));
  assert.throws(() => new AndesClient({}), /base_url must be the address of a server, got undefined/);
  await assert.rejects(nowhere.stream("x", {model, stream: false}), /stream cannot/);
  await assert.rejects(nowhere.stream("x", {model, reading_speed: -1}), /reading_speed.*-1/);
  await assert.rejects(nowhere.stream("x", {model, report_every_s: 0}), /report_every_s.*0/);
  await assert.rejects(client(GATEWAY).stream("x", {model, temperature: "warm"}), {name: "StatusError", status: 400});
  assert.throws(() => client(GATEWAY, {max_wait_s: -1}), /max_wait_s/);
});

test("a server that cannot be reached is tried again, then named", async () => {
  const waits = [];
  const on_wait = seconds => waits.push(seconds);
  await assert.rejects(client("http://127.0.0.1:1", {max_retries: 1}).stream("x", {model, on_wait}), TypeError);
  assert.deepEqual(waits, [0.5]);
});

test("an answer that is cut says so and keeps what came", async () => {
  const answer = await client().stream("x", {model, max_tokens: 4000});
  const pieces = answer[Symbol.asyncIterator]();
  const {value: first} = await pieces.next();
  process.kill(Number(ENGINE_PID), "SIGKILL");
  await assert.rejects(
    async () => { while (!(await pieces.next()).done); },
    error => {
      assert.ok(error instanceof InterruptedAnswerError, error);
      assert.equal(error.text, answer.text);
      assert.ok(answer.text.startsWith(first));
      assert.equal(error.request_id, answer.request_id);
      return /interrupted after \d+ characters/.test(error.message);
    },
  );
});

/**
 * What a reader expects, when text is shown, what the reader got, when a question is asked again. Pure: times are arguments.
 * The same rules as `andes_client` in Python; both are tested against tests/fixtures/reader.json.
 */

/** Seconds and tokens/s, where neither caller nor gateway says otherwise: the gateway's class `reading`. */
export const DEFAULT_FIRST_TOKEN_S = 1, DEFAULT_READING_SPEED = 4.8, DEFAULT_THINKING_SPEED = 25;
/** Seconds: text is shown this long before its reader has read what came before it. */
const LEAD_S = 0.25;
/** Seconds: shorter waits are rounding of the clock. */
const MIN_STALL_S = 1e-6;
/** Characters: a longer piece counts as several tokens, of about so many characters each. */
const LONGEST_TOKEN = 12, CHARACTERS_PER_TOKEN = 4;
/** Statuses that say "come back", where they say when; refusals that need not last, as are all from 500 on. */
const FULL = [429, 503], PASSING = [408, 409, 429];
/** Seconds after a failure that does not say how long, doubling. */
const FIRST_BACKOFF_S = 0.5, MAX_BACKOFF_S = 8;

/** The answer ended before it was complete. `text`: what had come; `request_id`: for the people who run the service. */
export class InterruptedAnswerError extends Error {
  constructor(why, text, request_id) {
    super(`the answer was interrupted after ${[...text].length} characters: ${why}`);
    Object.assign(this, {name: "InterruptedAnswerError", text, request_id});
  }
}

/** The server answered with an error. `status`, `headers`: of HTTP; `body`: as it came; `retry_after`: what it said, or null. */
export class StatusError extends Error {
  constructor(status, message, body, headers) {
    super(message);
    Object.assign(this, {name: "StatusError", status, body, headers, retry_after: headers.get("retry-after")});
  }
}

/** Tokens of one piece of a stream: one, unless it is long. */
export function count_tokens(text) {
  const characters = [...text].length;
  return characters <= LONGEST_TOKEN ? 1 : Math.round(characters / CHARACTERS_PER_TOKEN);
}

/** For a thought, in `x-andes-think-tds`. */
const NO_TIME = "none";

const number = text => (text === null || text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));
const significant = value => String(Number(value.toPrecision(6)));

/** What the reader of one answer expects; `thinking_speed`: tokens/s at which a model may think, unseen, before its reader
 * waits, Infinity: no time is granted to a thought. Throws `RangeError` naming field and value. */
export class Reader {
  constructor({reading_speed = null, first_token_s = null, klass = null, expected_tokens = null, thinking_speed = null} = {}) {
    const within = (value, low, high) => typeof value === "number" && value >= low && value <= high;
    const check = (name, value, right, must) => {
      if (value !== null && !right) throw new RangeError(`${name} must be ${must}, got ${JSON.stringify(value) ?? value}`);
    };
    check("reading_speed", reading_speed, within(reading_speed, 1e-3, 1e9), "tokens/s from 0.001 to 1e9");
    check("first_token_s", first_token_s, within(first_token_s, 0, 1e6), "seconds from 0 to 1e6");
    const whole = Number.isInteger(expected_tokens) && expected_tokens >= 1;
    check("expected_tokens", expected_tokens, whole, "a whole number from 1");
    check("klass", klass, typeof klass === "string" && /^[ -~]*[!-~][ -~]*$/.test(klass), "the name of a class");
    const thinks = within(thinking_speed, 1e-3, 1e9) || thinking_speed === Infinity;
    check("thinking_speed", thinking_speed, thinks, "tokens/s from 0.001 to 1e9, or Infinity");
    Object.assign(this, {reading_speed, first_token_s, klass, expected_tokens, thinking_speed});
  }

  /** For the request. `x-andes-report` asks for what the gateway saw of the reader. */
  headers() {
    const said = {
      "x-andes-class": this.klass,
      "x-andes-tds": this.reading_speed && significant(this.reading_speed),
      "x-andes-ttft-ms": this.first_token_s === null ? null : significant(1000 * this.first_token_s),
      "x-andes-expected-tokens": this.expected_tokens && String(this.expected_tokens),
      "x-andes-think-tds": this.thinking_speed && (this.thinking_speed === Infinity ? NO_TIME : significant(this.thinking_speed)),
      "x-andes-report": "usage",
    };
    return Object.fromEntries(Object.entries(said).filter(([, value]) => value !== null));
  }

  /** With what the answer's headers say that holds, else the defaults, in the place of what is null. */
  told(headers) {
    const first_ms = number(headers.get("x-andes-ttft-ms"));
    const think_tds = headers.get("x-andes-think-tds");
    const thinking_speed = think_tds === NO_TIME ? Infinity : number(think_tds) || DEFAULT_THINKING_SPEED;
    return new Reader({
      ...this,
      thinking_speed: this.thinking_speed ?? thinking_speed,
      reading_speed: this.reading_speed ?? (number(headers.get("x-andes-tds")) || DEFAULT_READING_SPEED),
      first_token_s: this.first_token_s ?? (first_ms === null ? DEFAULT_FIRST_TOKEN_S : first_ms / 1000),
    });
  }
}

/** When a piece of text is shown: the first as it comes, every further one LEAD_S before its reader has digested what came
 * before it, or as it comes if that is later. Pure: time is an argument, on the clock of the device that shows it. */
export class Pacer {
  #read_until_s = -Infinity;

  constructor(reading_speed) {
    this.pace_s = 1 / reading_speed;
  }

  show_at(came_s, tokens) {
    const show_s = Math.max(came_s, this.#read_until_s - LEAD_S);
    this.#read_until_s = Math.max(came_s, this.#read_until_s) + tokens * this.pace_s;
    return show_s;
  }
}

/** What a reader got: `qoe` in [0, 1], `tokens`, `ttft_s` (null: nothing came), `stalls`, `stall_s`, `longest_stall_s`. */
export class Experience {
  constructor(fields = {}) {
    Object.assign(this, {qoe: 0, tokens: 0, ttft_s: null, stalls: 0, stall_s: 0, longest_stall_s: 0, ...fields});
  }

  toString() {
    if (this.ttft_s === null) return "QoE 0.00: nothing came";
    const stalls = this.stalls ? `${this.stalls} stalls of ${this.stall_s.toFixed(1)} s in all` : "no stall";
    return `QoE ${this.qoe.toFixed(2)}: first text after ${this.ttft_s.toFixed(2)} s, ${stalls}, ${this.tokens} tokens`;
  }
}

/** When text was shown to one reader. `asked_s`: when the question was asked, on the clock of `show`. */
export class Timeline {
  #shown = [];

  constructor(asked_s) {
    this.asked_s = asked_s;
    this.tokens = 0;
  }

  /** `tokens` more are shown at `now_s`. A clock that jumps back counts as one that stands. */
  show(now_s, tokens) {
    this.#shown.push([Math.max(now_s, this.#shown.at(-1)?.[0] ?? this.asked_s), tokens]);
    this.tokens += tokens;
  }

  /** QoE is that of Andes (arXiv 2404.16283, version 2, section 3): the area under the digested curve over the one expected,
   * until the last token is digested. `tokens`: as the server counts them, spread over the pieces in proportion. */
  experience({first_token_s, reading_speed, tokens = null}) {
    if (!this.#shown.length) return new Experience();
    const start_s = this.asked_s + first_token_s, pace_s = 1 / reading_speed, scale = (tokens || this.tokens) / this.tokens;
    const waits_s = [];
    let done = 0, counted = 0, end_s = 0, lateness_s = 0;
    for (const [at_s, piece] of this.#shown) {
      counted += piece;
      const fresh = Math.round(counted * scale) - done;
      if (fresh <= 0) continue;
      const digest_s = Math.max(at_s - start_s, end_s);
      if (done && digest_s - end_s > MIN_STALL_S) waits_s.push(digest_s - end_s);
      lateness_s += fresh * (digest_s - done * pace_s);
      end_s = digest_s + fresh * pace_s;
      done += fresh;
    }
    const qoe = 1 - lateness_s / (done * end_s - (done * done * pace_s) / 2);
    return new Experience({
      qoe: Math.min(1, Math.max(0, qoe)),
      tokens: done,
      ttft_s: this.#shown[0][0] - this.asked_s,
      stalls: waits_s.length,
      stall_s: waits_s.reduce((sum, wait_s) => sum + wait_s, 0),
      longest_stall_s: Math.max(0, ...waits_s),
    });
  }
}

/** When a refused or failed question is asked again. `max_wait_s`: seconds that its reader waits in all; `attempts`:
 * failures, of connections or servers, after which it is asked again. */
export class Retries {
  #failed = 0;

  constructor(max_wait_s, attempts) {
    this.max_wait_s = max_wait_s;
    this.attempts = attempts;
    this.waited_s = 0;
  }

  /** {seconds, reason} to wait for after `error`; null: give up. `fetch` has a `TypeError` for every connection that fails. */
  after(error) {
    let wait = null;
    if (error instanceof StatusError) wait = this.#refused(error);
    else if (error instanceof TypeError) wait = this.#failure(null, "the server cannot be reached");
    if (wait === null || this.waited_s + wait.seconds > this.max_wait_s) return null;
    this.waited_s += wait.seconds;
    return wait;
  }

  #refused({status, headers, message}) {
    const seconds = until_s(headers);
    if (headers.get("x-should-retry") === "false") return null;
    if (FULL.includes(status) && seconds !== null) return {seconds, reason: message};
    return PASSING.includes(status) || status >= 500 ? this.#failure(seconds, message) : null;
  }

  #failure(seconds, reason) {
    if (this.#failed >= this.attempts) return null;
    this.#failed += 1;
    return {seconds: seconds ?? Math.min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (this.#failed - 1)), reason};
  }
}

/** Seconds until the time to come back: `Retry-After` in seconds or as a date, counted from the server's own, or OpenAI's
 * `retry-after-ms`; null: it is not said. */
function until_s(headers) {
  for (const [name, unit_s] of [["retry-after-ms", 1e-3], ["retry-after", 1]]) {
    const seconds = number(headers.get(name));
    if (seconds !== null) return seconds >= 0 && seconds < Infinity ? seconds * unit_s : null;
  }
  const date_ms = text => (text && /GMT\s*$/.test(text) ? Date.parse(text) : NaN);
  const until_ms = date_ms(headers.get("retry-after")), now_ms = date_ms(headers.get("date"));
  if (Number.isNaN(until_ms)) return null;
  return Math.max(0, (until_ms - (Number.isNaN(now_ms) ? Date.now() : now_ms)) / 1000);
}

/**
 * The reader's side of Andes in JavaScript: expectations that go out with a question, text at the speed of reading, and what
 * the reader got. For browsers and Node; needs `fetch` and nothing else.
 *
 *     const client = new AndesClient({base_url: "http://127.0.0.1:8080/v1"});
 *     const answer = await client.stream("What is QoE?", {model: "m", reading_speed: 8, pace: true});
 *     for await (const text of answer) document.body.append(text);
 *     console.log(String(answer.experience));
 */
import {InterruptedAnswerError, Pacer, Reader, Retries, StatusError, Timeline, count_tokens} from "./reader.mjs";

export * from "./reader.mjs";

const RESERVED = ["stream", "n"];
/** Seconds between two reports of what has been shown, where there is a page; a gateway forgets a report after 15 s. */
const REPORT_EVERY_S = 2, MIN_REPORT_EVERY_S = 0.1, MAX_REPORT_EVERY_S = 10;
/** All of a text, in pieces of a word each. */
const WORDS = /\s*\S+\s*|\s+/g;

async function status_error(response) {
  const text = await response.text();
  let message = text;
  try {
    message = JSON.parse(text).error?.message ?? text;
  } catch {
    // not JSON: the text says it
  }
  return new StatusError(response.status, message || `HTTP ${response.status}`, text, response.headers);
}

/** Ends early, with the signal's reason, once `signal` is aborted. */
function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const stop = () => { clearTimeout(timer); reject(signal.reason); };
    const timer = setTimeout(() => { signal.removeEventListener("abort", stop); resolve(); }, 1000 * seconds);
    signal.addEventListener("abort", stop, {once: true});
  });
}

/** Seconds for a reader who looks at `page` (a document): the clock stands while it is hidden. No page: always looked at. */
class ReaderClock {
  #hidden_s = 0;
  #since_s = null;

  constructor(page) {
    this.page = page;
    this.on_turn = () => {};
    this.listener = () => { this.#turn(); this.on_turn(); };
    page?.addEventListener("visibilitychange", this.listener);
    this.#turn();
  }

  get visible() {
    return !this.page?.hidden;
  }

  now_s() {
    return (this.#since_s ?? performance.now() / 1000) - this.#hidden_s;
  }

  /** Until it is `at_s` and the page is visible. */
  async until(at_s, signal) {
    for (;;) {
      while (!this.visible) await this.#changed(signal);
      const left_s = at_s - this.now_s();
      if (left_s <= 0) return;
      await sleep(left_s, signal);
    }
  }

  end() {
    this.page?.removeEventListener("visibilitychange", this.listener);
  }

  #turn() {
    const now_s = performance.now() / 1000;
    if (this.#since_s !== null) this.#hidden_s += now_s - this.#since_s;
    this.#since_s = this.visible ? null : now_s;
  }

  #changed(signal) {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const stop = () => reject(signal.reason);
      signal.addEventListener("abort", stop, {once: true});
      const go_on = () => { signal.removeEventListener("abort", stop); resolve(); };
      this.page.addEventListener("visibilitychange", go_on, {once: true});
    });
  }
}

/** Tells the gateway what the reader of one stream has been shown. Best effort: nothing waits for it, and a gateway that does
 * not know the stream is told no more. */
class Reports {
  #ended = false;
  #sending = false;
  #timer = null;

  /** `url`: null where none are to be sent. `every_s`: seconds; also at once when the page is hidden or comes back. `shown`:
   * () => {characters, visible}. */
  constructor(url, headers, every_s, shown) {
    Object.assign(this, {url, headers, every_s, shown});
  }

  begin() {
    if (this.url === null) return;
    this.#timer = setInterval(() => { if (!this.#sending) this.say(); }, 1000 * this.every_s);
    this.#timer.unref?.(); // Node: an answer that is left alone keeps no process
    if (!this.shown().visible) this.say();
  }

  async say() {
    if (this.url === null || this.#ended) return;
    this.#sending = true;
    const body = JSON.stringify({...this.shown(), at_s: performance.now() / 1000});
    const headers = {...this.headers, "content-type": "application/json"};
    const response = await fetch(this.url, {method: "POST", headers, body, keepalive: true}).catch(() => null);
    this.#sending = false;
    if (response?.status >= 400 && response.status < 500) this.end();
  }

  end() {
    this.#ended = true;
    clearInterval(this.#timer);
  }
}

/** The data of each event of a stream of server-sent events. */
async function* data_of(body) {
  const source = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", data = [];
  for (;;) {
    const {value, done} = await source.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).trim());
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

/** One answer. Iterate over it for the text; `experience`, `usage`, `finish_reason` and `gateway_report` are whole at its
 * end. Throws InterruptedAnswerError for an answer that is cut, and the signal's reason once the caller has aborted it. */
export class Answer {
  #response;
  #stop;
  #signal;
  #clock;
  #timeline;
  #pacer;
  #reports;
  #on_chunk;
  #characters = 0;
  #thoughts = 0;

  constructor(response, reader, {asked_s, pace, clock, stop, signal, report_to, on_chunk}) {
    this.reader = reader.told(response.headers);
    this.request_id = response.headers.get("x-request-id");
    this.model = response.headers.get("x-andes-model");
    this.text = "";
    this.usage = null;
    this.finish_reason = null;
    this.#response = response;
    this.#stop = stop;
    this.#signal = signal;
    this.#on_chunk = on_chunk;
    this.#clock = clock;
    this.#timeline = new Timeline(asked_s);
    this.#pacer = pace ? new Pacer(this.reader.reading_speed) : null;
    this.#reports = report_to(response, () => ({characters: this.#characters, visible: clock.visible}));
    clock.on_turn = () => this.#reports.say();
    this.#reports.begin();
    signal.addEventListener("abort", () => { this.#reports.end(); clock.end(); }, {once: true});
  }

  /** What the reader got; while the answer comes, so far. */
  get experience() {
    const {reading_speed, thinking_speed} = this.reader;
    const first_token_s = this.reader.first_token_s + (this.#thought_by_server() || this.#thoughts) / thinking_speed;
    return this.#timeline.experience({first_token_s, reading_speed, tokens: this.finish_reason && this.#counted_by_server()});
  }

  /** What the gateway saw of this reader (`x-andes-report`); null: no Andes gateway, or not at its end yet. */
  get gateway_report() {
    return this.usage?.andes ?? null;
  }

  /** Hang up: the server stops generating, and who iterates gets an `AbortError`. */
  close() {
    this.#stop.abort();
  }

  async *[Symbol.asyncIterator]() {
    try {
      for await (const [chunk, pieces] of this.#chunks()) {
        this.#on_chunk?.(chunk);
        for (const piece of pieces) {
          const tokens = count_tokens(piece);
          if (this.#pacer) await this.#clock.until(this.#pacer.show_at(this.#clock.now_s(), tokens), this.#signal);
          this.#signal.throwIfAborted();
          this.text += piece;
          this.#characters += [...piece].length;
          this.#timeline.show(this.#clock.now_s(), tokens);
          yield piece;
        }
      }
    } finally {
      this.close();
    }
  }

  /** Each chunk, with its pieces of text. */
  async *#chunks() {
    try {
      for await (const data of data_of(this.#response.body)) {
        if (data === "[DONE]") continue;
        const chunk = JSON.parse(data);
        yield [chunk, this.#take(chunk)];
      }
      if (this.finish_reason === null) throw new Error("the stream ended without a finish reason");
    } catch (error) {
      this.#signal.throwIfAborted();
      throw new InterruptedAnswerError(error.message, this.text, this.request_id);
    }
  }

  /** The pieces of text in a chunk; paced, word by word. */
  #take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message ?? JSON.stringify(chunk.error));
    this.model ??= chunk.model;
    this.usage = chunk.usage ?? this.usage;
    let text = "";
    for (const {finish_reason, delta} of chunk.choices ?? []) { // servers write null for none
      this.finish_reason = finish_reason || this.finish_reason;
      text += delta?.content ?? "";
      const thought = delta?.reasoning_content || delta?.reasoning; // the latter: vLLM, Ollama
      if (thought && typeof thought === "string") this.#thoughts += count_tokens(thought);
    }
    if (this.#pacer) return text.match(WORDS) ?? [];
    return text ? [text] : [];
  }

  /** Tokens of the text; those of a hidden thought are not read. null: no count, or one that does not tell them apart. */
  #counted_by_server() {
    const thought = this.#thought_by_server(), report = this.#report_of_tools();
    if (report) return Math.max(1, report.tokens);
    if (this.usage === null || (this.#thoughts && !thought)) return null;
    return Math.max(1, this.usage.completion_tokens - thought);
  }

  /** Where tools ran at the gateway: `usage` counts their calls, which are not read; the gateway tells them apart. */
  #report_of_tools() {
    return this.gateway_report?.tools ? this.gateway_report : null;
  }

  /** Tokens of a hidden thought, where the server counts them: OpenAI's way or SGLang's. */
  #thought_by_server() {
    const report = this.#report_of_tools();
    if (report) return report.thought_tokens;
    return this.usage?.completion_tokens_details?.reasoning_tokens ?? this.usage?.reasoning_tokens ?? 0;
  }
}

/** As OpenAI has them; throws RangeError for what is neither text nor messages. */
function list_of(messages) {
  if (typeof messages === "string") return [{role: "user", content: messages}];
  const right = Array.isArray(messages) && messages.every(message => message !== null && typeof message === "object");
  if (!right) throw new RangeError(`messages must be text or a list of messages, got ${JSON.stringify(messages)?.slice(0, 100)}`);
  return messages;
}

/** Asks a server that speaks OpenAI's chat completions at `base_url`. `headers`: further ones; `max_wait_s`: seconds that
 * `stream` waits in all while it is refused with a time to come back; `max_retries`: connections that may fail; `page`: the
 * document whose reader it is, null where there is none. */
export class AndesClient {
  constructor({base_url, api_key = null, headers = {}, max_wait_s = 60, max_retries = 2, page = globalThis.document}) {
    if (!base_url) throw new RangeError(`base_url must be the address of a server, got ${base_url}`);
    if (!(max_wait_s >= 0)) throw new RangeError(`max_wait_s must be seconds from 0, got ${max_wait_s}`);
    this.base_url = String(base_url).replace(/\/+$/, "");
    this.headers = {...(api_key && {authorization: `Bearer ${api_key}`}), ...headers};
    Object.assign(this, {max_wait_s, max_retries, page});
  }

  /** Ask, and get the Answer as it comes. `messages`: as OpenAI has them, or the question. `reading_speed`, `first_token_s`,
   * `klass`, `expected_tokens`, `thinking_speed`: of the Reader. `pace`: show the text at `reading_speed`, whatever the server does, and only
   * while the page is visible. `report_every_s`: tell a gateway that takes reports so often what has been shown; by default
   * every 2 s where there is a page, null (never) elsewhere. `on_wait(seconds, reason)`: the service is full and the
   * question is asked again. `on_chunk(chunk)`: is given each chunk of the answer as it is read, before its text is shown: calls
   * of tools and what else is no text. `signal`: an AbortSignal. `options`: all else that chat completions take. Throws RangeError for
   * what makes no sense, StatusError for a refusal, TypeError for a server that cannot be reached. */
  async stream(messages, {pace = false, report_every_s, on_wait, on_chunk, signal, ...rest} = {}) {
    const every_s = this.#checked(report_every_s);
    const {reading_speed, first_token_s, klass, expected_tokens, thinking_speed, ...options} = rest;
    const reader = new Reader({reading_speed, first_token_s, klass, expected_tokens, thinking_speed});
    for (const name of RESERVED) {
      if (name in options) throw new RangeError(`${name} cannot be given: stream() streams one answer`);
    }
    const asked = list_of(messages);
    const stop = new AbortController(), either = signal ? AbortSignal.any([signal, stop.signal]) : stop.signal;
    const clock = new ReaderClock(this.page);
    const body = {stream_options: {include_usage: true}, ...options, messages: asked, stream: true};
    const asked_s = clock.now_s();
    try {
      const response = await this.#ask(body, reader, either, on_wait);
      const report_to = (head, shown) => this.#reports(head, every_s, shown);
      return new Answer(response, reader, {asked_s, pace, clock, stop, signal: either, report_to, on_chunk});
    } catch (error) {
      clock.end();
      throw error;
    }
  }

  #checked(every_s = this.page ? REPORT_EVERY_S : null) {
    if (every_s !== null && !(every_s >= MIN_REPORT_EVERY_S && every_s <= MAX_REPORT_EVERY_S)) {
      const range = `${MIN_REPORT_EVERY_S} to ${MAX_REPORT_EVERY_S}`;
      throw new RangeError(`report_every_s must be seconds from ${range}, or null, got ${every_s}`);
    }
    return every_s;
  }

  #reports(response, every_s, shown) {
    const id = response.headers.get("x-andes-stream");
    const url = every_s !== null && id !== null ? `${this.base_url}/streams/${id}/reader` : null;
    return new Reports(url, this.headers, every_s, shown);
  }

  /** The response, once there is one that is no refusal. */
  async #ask(body, reader, signal, on_wait) {
    const retries = new Retries(this.max_wait_s, this.max_retries);
    const headers = {"content-type": "application/json", ...reader.headers(), ...this.headers};
    const url = `${this.base_url}/chat/completions`, options = {method: "POST", headers, body: JSON.stringify(body), signal};
    new Request(url, options); // throws for what can never be sent, which is no fault of the server
    for (;;) {
      try {
        const response = await fetch(url, options);
        if (response.ok) return response;
        throw await status_error(response);
      } catch (error) {
        signal.throwIfAborted();
        const wait = retries.after(error);
        if (wait === null) throw error;
        on_wait?.(wait.seconds, wait.reason);
        await sleep(wait.seconds, signal);
      }
    }
  }
}

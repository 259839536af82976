// The pure part of the JavaScript client against the rules that it shares with the Python client.
import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {createServer} from "node:http";
import {test} from "node:test";
import {AndesClient, Pacer, Reader, Retries, StatusError, Timeline, count_tokens} from "../../clients/javascript/andes-client.mjs";

const rules = JSON.parse(readFileSync(new URL("../fixtures/reader.json", import.meta.url)));

function close(got, expected, what) {
  if (expected === null) assert.equal(got, null, what);
  else assert.ok(Math.abs(got - expected) < 1e-6, `${what}: ${got} instead of ${expected}`);
}

test("what a reader got", () => {
  for (const row of rules.experience) {
    const timeline = new Timeline(row.asked_s);
    for (const [at_s, tokens] of row.shown) timeline.show(at_s, tokens);
    const {first_token_s, reading_speed, counted_by_server: tokens} = row;
    const got = timeline.experience({first_token_s, reading_speed, tokens});
    for (const [name, value] of Object.entries(row.experience)) close(got[name], value, `${row.case}, ${name}`);
    assert.equal(String(got), row.said);
  }
});

test("tokens of a piece", () => {
  for (const [text, tokens] of rules.count_tokens) assert.equal(count_tokens(text), tokens, text);
});

test("when text is shown", () => {
  for (const {reading_speed, came, show_at_s} of rules.pacing) {
    const pacer = new Pacer(reading_speed);
    came.forEach(([at_s, tokens], k) => close(pacer.show_at(at_s, tokens), show_at_s[k], `piece ${k} at ${reading_speed}/s`));
  }
});

test("what goes out and what comes back", () => {
  for (const {reader, headers} of rules.headers) assert.deepEqual(new Reader(reader).headers(), headers);
  for (const [field, value] of rules.refused) {
    const says = error => error instanceof RangeError && error.message.startsWith(field) && error.message.includes(JSON.stringify(value));
    assert.throws(() => new Reader({[field]: value}), says, `${field} ${value}`);
  }
  for (const {reader, headers, holds} of rules.told) {
    const {reading_speed, first_token_s} = new Reader(reader).told(new Headers(headers));
    assert.deepEqual({reading_speed, first_token_s}, holds);
  }
  const thinking = (said, reader = {}) => new Reader(reader).told(new Headers(said)).thinking_speed;
  const header = "x-andes-think-tds";
  assert.deepEqual([thinking({}), thinking({[header]: "50"}), thinking({[header]: "none"})], [25, 50, Infinity]);
  assert.equal(thinking({[header]: "50"}, {thinking_speed: 7}), 7);
  assert.equal(new Reader({thinking_speed: Infinity}).headers()[header], "none");
});

test("a thought is not read, and its reader has patience for it", async () => {
  const event = (delta, more = {}) => `data: ${JSON.stringify({choices: [{index: 0, delta, finish_reason: null}], ...more})}\n\n`;
  const answered = event({reasoning_content: "x".repeat(400)}) + event({content: "so"}) + event({content: "it"});
  const told = async (usage, thinking_speed) => {
    const last = event({}, {usage}).replace('"finish_reason":null', '"finish_reason":"stop"');
    const server = createServer((_request, response) => response.end(answered + last));
    await new Promise(resolve => server.listen(0, "127.0.0.1", resolve));
    try {
      const client = new AndesClient({base_url: `http://127.0.0.1:${server.address().port}/v1`});
      const answer = await client.stream("x", {model: "m", first_token_s: 0, thinking_speed});
      for await (const _text of answer);
      return answer.experience;
    } finally {
      server.close();
    }
  };
  const counts = [{reasoning_tokens: 50}, {completion_tokens_details: {reasoning_tokens: 50}}, {}];
  for (const count of counts) {
    const {tokens, qoe} = await told({completion_tokens: 52, ...count}, 0.001);
    assert.deepEqual({tokens, qoe}, {tokens: 2, qoe: 1}, JSON.stringify(count));
  }
  assert.ok((await told({completion_tokens: 52, ...counts[0]}, Infinity)).qoe < 1, "no time for the thought");
});

test("when a question is asked again", () => {
  for (const {max_wait_s, attempts, tries} of rules.retries) {
    const retries = new Retries(max_wait_s, attempts);
    for (const {status, headers, wait_s} of tries) {
      const error = status ? new StatusError(status, "full", "", new Headers(headers)) : new TypeError("fetch failed");
      assert.equal(retries.after(error)?.seconds ?? null, wait_s, `${status} ${JSON.stringify(headers)}`);
    }
  }
  assert.equal(new Retries(60, 2).after(new Error("another")), null);
});

test("another server: it fails once, its chunks lack what can be left out, and calls of tools come through", async () => {
  const {events, text, thought, calls} = rules.another_server;
  let asked = 0;
  const server = createServer((request, response) => {
    asked += 1;
    if (asked === 1) response.writeHead(502, {"retry-after": "0"}).end("<html>bad gateway</html>");
    else response.writeHead(200, {"content-type": "text/event-stream"}).end(events.join("\n\n") + "\n\n");
  });
  await new Promise(resolve => server.listen(0, "127.0.0.1", resolve));
  try {
    const client = new AndesClient({base_url: `http://127.0.0.1:${server.address().port}/v1`});
    const seen = [], written = {};
    const on_chunk = chunk => {
      seen.push(chunk);
      for (const {index, function: {name, arguments: more}} of chunk.choices?.[0]?.delta?.tool_calls ?? []) {
        written[index] = (written[index] ?? (name ? `${name} ` : "")) + more;
      }
    };
    const answer = await client.stream("x", {model: "m", thinking_speed: 1, first_token_s: 0, on_chunk});
    for await (const _ of answer);
    assert.equal(answer.text, text);
    assert.equal(answer.finish_reason, "tool_calls");
    assert.deepEqual(Object.values(written), calls);
    assert.equal(seen.length, events.length - 2); // of a comment and the end there is no chunk
    assert.equal(answer.experience.qoe, 1, `patience for ${thought}`);
    const broken = await client.stream("x", {model: "m", on_chunk: () => { throw new RangeError("mine"); }});
    await assert.rejects(async () => { for await (const _ of broken); }, RangeError);
  } finally {
    server.close();
  }
});

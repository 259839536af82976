// The pure part of the JavaScript client against the rules that it shares with the Python client.
import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {test} from "node:test";
import {Pacer, Reader, Retries, StatusError, Timeline, count_tokens} from "../../clients/javascript/andes-client.mjs";

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
    const says = error => error instanceof RangeError && error.message.startsWith(field) && error.message.includes(value);
    assert.throws(() => new Reader({[field]: value}), says, `${field} ${value}`);
  }
  for (const {reader, headers, holds} of rules.told) {
    const {reading_speed, first_token_s} = new Reader(reader).told(new Headers(headers));
    assert.deepEqual({reading_speed, first_token_s}, holds);
  }
});

test("when a question is asked again", () => {
  for (const {max_wait_s, attempts, tries} of rules.retries) {
    const retries = new Retries(max_wait_s, attempts);
    for (const {status, retry_after, wait_s} of tries) {
      const error = status ? new StatusError(status, "full", "", retry_after) : new TypeError("fetch failed");
      assert.equal(retries.after(error)?.seconds ?? null, wait_s, `${status} ${retry_after}`);
    }
  }
  assert.equal(new Retries(60, 2).after(new Error("another")), null);
});

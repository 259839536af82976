export const DEFAULT_FIRST_TOKEN_S: number;
export const DEFAULT_READING_SPEED: number;
export const DEFAULT_THINKING_SPEED: number;

export class InterruptedAnswerError extends Error {
  readonly text: string;
  readonly request_id: string | null;
}

export class StatusError extends Error {
  readonly status: number;
  readonly body: string;
  readonly headers: Headers;
  readonly retry_after: string | null;
}

/** null: as the class says. */
export interface Expectations {
  /** tokens/s */
  reading_speed?: number | null;
  /** seconds */
  first_token_s?: number | null;
  klass?: string | null;
  expected_tokens?: number | null;
  /** tokens/s of a thought that is not shown; Infinity: it is granted no time */
  thinking_speed?: number | null;
}

export class Reader implements Expectations {
  constructor(expectations?: Expectations);
  readonly reading_speed: number | null;
  readonly first_token_s: number | null;
  readonly klass: string | null;
  readonly expected_tokens: number | null;
  readonly thinking_speed: number | null;
  headers(): Record<string, string>;
  told(headers: Headers): Reader;
}

export class Pacer {
  constructor(reading_speed: number);
  show_at(came_s: number, tokens: number): number;
}

export class Experience {
  readonly qoe: number;
  readonly tokens: number;
  readonly ttft_s: number | null;
  readonly stalls: number;
  readonly stall_s: number;
  readonly longest_stall_s: number;
  toString(): string;
}

export class Timeline {
  constructor(asked_s: number);
  readonly tokens: number;
  show(now_s: number, tokens: number): void;
  experience(reader: { first_token_s: number; reading_speed: number; tokens?: number | null }): Experience;
}

export interface Wait {
  seconds: number;
  reason: string;
}

export class Retries {
  constructor(max_wait_s: number, attempts: number);
  after(error: unknown): Wait | null;
}

export function count_tokens(text: string): number;

export interface StreamOptions extends Expectations {
  model: string;
  pace?: boolean;
  /** seconds; null: no reports */
  report_every_s?: number | null;
  on_wait?: ((seconds: number, reason: string) => void) | null;
  /** each chunk as it is read, before its text is shown */
  on_chunk?: ((chunk: Record<string, any>) => void) | null;
  signal?: AbortSignal;
  /** all else that chat completions take */
  [option: string]: unknown;
}

export class Answer implements AsyncIterable<string> {
  readonly reader: Reader;
  readonly text: string;
  readonly model: string | null;
  readonly usage: Record<string, unknown> | null;
  readonly finish_reason: string | null;
  readonly request_id: string | null;
  readonly experience: Experience;
  readonly gateway_report: Record<string, unknown> | null;
  close(): void;
  [Symbol.asyncIterator](): AsyncIterator<string>;
}

export interface ClientOptions {
  base_url: string | URL;
  api_key?: string | null;
  headers?: Record<string, string>;
  /** seconds */
  max_wait_s?: number;
  max_retries?: number;
  page?: Pick<Document, "hidden" | "addEventListener" | "removeEventListener"> | null;
}

export class AndesClient {
  constructor(options: ClientOptions);
  stream(messages: string | ReadonlyArray<Record<string, unknown>>, options: StreamOptions): Promise<Answer>;
}

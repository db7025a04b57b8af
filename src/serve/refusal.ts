/** @file What is said to someone whose request is not done. */

/** Why; each API has its own numbers for these. */
export type Reason =
  | "invalid_value"
  | "invalid_json"
  | "unsupported_media_type"
  | "model_not_found"
  | "not_found"
  | "method_not_allowed"
  | "invalid_api_key"
  | "foreign_origin"
  | "request_too_large"
  | "rate_limit_exceeded"
  | "queue_full"
  | "shutting_down"
  | "not_implemented"
  | "cancelled"
  | "time_limit"
  | "worker_died"
  | "generation_failed"
  | "internal_error";

/** Carries a sentence for the client. */
export class Refusal extends Error {
  override name = "Refusal";
  readonly reason: Reason;
  /** The field that is wrong. */
  readonly param?: string;
  /** Seconds after which it may be tried again. */
  readonly retryAfter?: number;

  constructor(reason: Reason, message: string, more: { param?: string; retryAfter?: number } = {}) {
    super(message);
    this.reason = reason;
    this.param = more.param;
    this.retryAfter = more.retryAfter;
  }
}

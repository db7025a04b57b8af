/** @file What an answer of the hub that is none means, in one sentence. */

import type { Reference } from "./cache.ts";

export interface Asked extends Reference {
  endpoint: string;
  hasToken: boolean;
  /** A file of it; otherwise the repository itself was asked for. */
  path?: string;
}

/** Whether an answer comes from the hub itself, and not from where it sent us. */
export function isFrom(endpoint: string, response: Response): boolean {
  return new URL(response.url).origin === new URL(endpoint).origin;
}

/** By the hub's own code for the error where it gives one, else by the status. */
export function refusal(response: Response, asked: Asked): Error {
  return new Error(isFrom(asked.endpoint, response) ? hubSentence(response, asked) : plainSentence(response));
}

function hubSentence(response: Response, { repo, revision, path, endpoint, hasToken }: Asked): string {
  const { status, headers } = response;
  const tokens = `${endpoint}/settings/tokens`;
  const code = headers.get("x-error-code");
  if (code === "GatedRepo")
    return (
      `${repo} is gated: accept its terms at ${endpoint}/${repo}, then give a token of the same account ` +
      `in HF_TOKEN (${tokens})`
    );
  if (code === "RevisionNotFound")
    return `${repo} has no branch, tag or commit ${revision}; without a revision its main branch is taken`;
  if (code === "EntryNotFound" || (status === 404 && path !== undefined))
    return `${endpoint} lists ${path} in ${repo}, but does not have it; try again later`;
  if (status === 401 && hasToken) return `${endpoint} does not accept the token; make a new one at ${tokens}`;
  if (status === 401)
    return `${repo} does not exist or is private: check the name, or give a token in HF_TOKEN (${tokens})`;
  if (status === 403)
    return `${endpoint} refuses access to ${repo}; give a token that may read it in HF_TOKEN (${tokens})`;
  if (code === "RepoNotFound") return `${endpoint} has no repository ${repo}; check its name`;
  if (status === 404) return `${endpoint} has no repository ${repo}, or that has no revision ${revision}`;
  if (status === 429) return `${endpoint} has had too many requests; run it again in a while`;
  return plainSentence(response);
}

function plainSentence({ status, url }: Response): string {
  return `${new URL(url).host} answered with status ${status}; run it again later`;
}

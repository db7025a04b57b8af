/** @file The proxy between us and the hub, as the environment names it. */

import process from "node:process";

/** Status with which a proxy answers instead of connecting, in undici's words. */
const REFUSED = /^Proxy (?:response|Authentication Required) \((\d{3})\)/;

/** A variable of the environment, in lower case first, as curl has it; undefined where it is empty. */
function variable(upper: string): { name: string; value: string } | undefined {
  const name = [upper.toLowerCase(), upper].find((key) => process.env[key]?.trim());
  return name === undefined ? undefined : { name, value: process.env[name]!.trim() };
}

/** @returns "" where none is named. @throws a sentence, without the password that the address may have. */
function addressIn(upper: string): string {
  const { name, value } = variable(upper) ?? {};
  if (value === undefined) return "";
  const address = value.includes("://") ? value : `http://${value}`;
  if (URL.canParse(address) && /^https?:$/.test(new URL(address).protocol)) return address;
  const shown = JSON.stringify(value.replace(/[^/]*@/, ""));
  throw new Error(`${name} is ${shown}; give the address of a proxy, such as http://proxy.example.org:3128`);
}

/**
 * `fetch` through the proxies in HTTPS_PROXY and HTTP_PROXY, but to the hosts in NO_PROXY; without HTTPS_PROXY, HTTP_PROXY
 * stands for both. Node's own `fetch` passes them by.
 * @throws one sentence when a variable holds no address of a proxy.
 */
export async function proxiedFetch(): Promise<typeof fetch> {
  const [httpsProxy, httpProxy] = ["HTTPS_PROXY", "HTTP_PROXY"].map(addressIn);
  if (httpsProxy === "" && httpProxy === "") return fetch;
  const undici = await import("undici");
  const noProxy = variable("NO_PROXY")?.value ?? "";
  // Without tunnels for plain http: proxies let these through to port 443 only.
  const how = { httpsProxy, httpProxy, noProxy, proxyTunnel: false };
  const dispatcher = new undici.EnvHttpProxyAgent(how);
  const through = (url: string, init: object) => undici.fetch(url, { ...init, dispatcher });
  return through as unknown as typeof fetch; // the same standard, in types of its own
}

/** Names of the variables that are set: what to look at when a host cannot be reached. */
export function proxyVariables(): string[] {
  return ["HTTPS_PROXY", "HTTP_PROXY"].flatMap((upper) => variable(upper)?.name ?? []);
}

/** A sentence where the proxy does not connect us, which trying again does not mend; undefined for other failures. */
export function proxyRefusal(answer: Error | Response): Error | undefined {
  const status = answer instanceof Error ? refusedWith(answer) : answer.status === 407 ? 407 : undefined;
  if (status === undefined) return undefined;
  const names = proxyVariables().join(" or ");
  return new Error(
    status === 407
      ? `the proxy wants to know who asks (status 407): give it as http://user:password@host:port in ${names}`
      : `the proxy does not connect to this host (status ${status}): check ${names}, or name the host in NO_PROXY`,
    { cause: answer },
  );
}

/** The status is in the words of one of the failures that undici wraps. */
function refusedWith({ message, cause }: Error): number | undefined {
  const [, status] = REFUSED.exec(message) ?? [];
  if (status !== undefined) return Number(status);
  return cause instanceof Error ? refusedWith(cause) : undefined;
}

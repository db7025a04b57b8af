export { namedPath } from "./catalogue.ts";
export { isLoopback } from "./http/guard.ts";
export { createServer, type ServeOptions, type Server } from "./server.ts";

import type { ConnectOptions } from "./client.js";

/**
 * Return a function that opens sockets over the best transport that works.
 *
 * Only client.js calls it: give `connect` a function that imports this module, as its option `fallback`.
 */
export declare function choose(options: ConnectOptions, dial: (socket: never) => void): (address: URL) => unknown;

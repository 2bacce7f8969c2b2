// Protobuf, as far as the board needs it, driven by the schema that the server makes from its descriptors.
//
// A message becomes an object whose prototype holds the defaults. Times become milliseconds since 1970, 64-bit
// numbers plain ones: versions and counts stay far below 2^53.
import { schema } from './schema.js';

const utf8 = new TextDecoder();
const toUtf8 = new TextEncoder();
const NONE = Object.freeze([]);

const defaults = Object.fromEntries(Object.entries(schema).map(([kind, fields]) => {
  const values = {};
  for (const field of Object.values(fields)) values[field.name] = absent(field);
  return [kind, values];
}));

function absent({ kind, repeated, optional }) {
  if (repeated) return NONE;
  if (optional) return undefined;
  if (kind === 'string') return '';
  return kind === 'bool' ? false : 0;
}

/** Decodes a message of a kind from bytes. */
export function decode(kind, bytes) {
  return message(new Reader(bytes, 0, bytes.length), kind);
}

class Reader {
  constructor(bytes, at, end) {
    this.bytes = bytes;
    this.at = at;
    this.end = end;
  }

  get more() {
    return this.at < this.end;
  }

  byte() {
    if (this.at >= this.end) throw new RangeError('a message ends too early');
    return this.bytes[this.at++];
  }

  varint(signed = false) {
    let value = 0;
    let scale = 1;
    for (let count = 0; count < 7; count++) {
      const byte = this.byte();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      scale *= 128;
    }
    // Rare: more than 49 bits, or a negative number.
    let wide = BigInt(value);
    for (let shift = 49n; shift < 70n; shift += 7n) {
      const byte = this.byte();
      wide |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return Number(signed ? BigInt.asIntN(64, wide) : BigInt.asUintN(64, wide));
    }
    throw new RangeError('a number is too long');
  }

  /** A reader of what follows, behind its length. */
  part() {
    const length = this.varint();
    const start = this.at;
    if (start + length > this.end) throw new RangeError('a message ends too early');
    this.at += length;
    return new Reader(this.bytes, start, this.at);
  }

  text() {
    const part = this.part();
    return utf8.decode(this.bytes.subarray(part.at, part.end));
  }

  skip(wire) {
    if (wire === 0) this.varint();
    else if (wire === 1) this.at += 8;
    else if (wire === 2) this.part();
    else if (wire === 5) this.at += 4;
    else throw new RangeError(`unknown wire type ${wire}`);
  }
}

function message(reader, kind) {
  const fields = schema[kind];
  const into = Object.create(defaults[kind]);
  while (reader.more) {
    const tag = reader.varint();
    const field = fields[tag >>> 3];
    if (field === undefined) reader.skip(tag & 7);
    else if (!field.repeated) into[field.name] = value(reader, field.kind);
    else if (Object.hasOwn(into, field.name)) into[field.name].push(value(reader, field.kind));
    else into[field.name] = [value(reader, field.kind)];
  }
  return into;
}

function value(reader, kind) {
  switch (kind) {
    case 'string': return reader.text();
    case 'bool': return reader.varint() !== 0;
    case 'int32': case 'int64': return reader.varint(true);
    case 'uint32': case 'uint64': case 'enum': return reader.varint();
    case 'time': return time(reader.part());
    default: return message(reader.part(), kind);
  }
}

function time(reader) {
  let seconds = 0;
  let nanos = 0;
  while (reader.more) {
    const tag = reader.varint();
    if (tag === 8) seconds = reader.varint(true);
    else if (tag === 16) nanos = reader.varint();
    else reader.skip(tag & 7);
  }
  return seconds * 1000 + nanos / 1e6;
}

/** Encodes a request: strings, small numbers, and durations in whole seconds. */
export function encode(kind, request) {
  const bytes = [];
  const varint = (number) => {
    let rest = number;
    for (; rest > 0x7f; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 0x80);
    bytes.push(rest);
  };
  for (const [number, field] of Object.entries(schema[kind])) {
    const given = request[field.name];
    if (given === undefined) continue;
    if (field.kind === 'string') {
      const text = toUtf8.encode(given);
      varint(number * 8 + 2);
      varint(text.length);
      for (const byte of text) bytes.push(byte);
    } else if (field.kind === 'duration') {
      bytes.push(number * 8 + 2, 2, 8, given);
    } else {
      varint(number * 8);
      varint(Number(given));
    }
  }
  return new Uint8Array(bytes);
}

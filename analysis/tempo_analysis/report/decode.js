// Reads what packing.py and prompt.py wrote. Axis order is theirs: layer, head, query, slot.

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function floatsOf(base64) {
  return new Float32Array(bytesOf(base64).buffer);
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// One decoded prompt under one arm.
class Trace {
  constructor(name, data, planes) {
    Object.assign(this, data, { name });
    this.members = [];
    this.slots.step.forEach((step, slot) => (this.members[step] ??= []).push(slot));
    this.planes = planes;
    this.visibleBits = (this.rows?.visible ?? []).map(bytesOf);
    this.firstCell = new Map();
    this.firstPair = new Map();
    let cells = 0;
    let pairs = 0;
    for (const step of this.rows?.steps ?? []) {
      this.firstCell.set(step, cells);
      this.firstPair.set(step, pairs);
      const perMap = this.members[step].length * this.nSlots(step);
      pairs += perMap;
      cells += perMap * this.layers.length * this.heads.length;
    }
    this.nCells = cells;
  }

  static async read(name, data) {
    return new Trace(name, data, data.rows && (await inflated(bytesOf(data.rows.data))));
  }

  nSlots(step) {
    return this.members[step].at(-1) + 1;
  }

  hasRows(step) {
    return this.firstCell.has(step);
  }

  // Layer and head count along the captured axes; query along the members of the step.
  weight(step, layer, head, query, slot) {
    const nQueries = this.members[step].length;
    const row = (layer * this.heads.length + head) * nQueries + query;
    const cell = this.firstCell.get(step) + row * this.nSlots(step) + slot;
    const code = (this.planes[cell] << 8) | this.planes[this.nCells + cell];
    if (code === 0) return 0;
    return Math.exp(this.rows.floor * (1 - (code - 1) / this.rows.levels));
  }

  sees(step, layer, query, slot) {
    const bit = this.firstPair.get(step) + query * this.nSlots(step) + slot;
    const bytes = this.visibleBits[this.rows.windowOfLayer[layer]];
    return ((bytes[bit >> 3] >> (7 - (bit & 7))) & 1) === 1;
  }

  // One query's row: what it pays to each slot, and what to hold that against.
  row(step, layer, head, query) {
    const own = this.members[step][query];
    const cells = [];
    let total = this.rows.sumsToOne ? 1 : 0;
    let nVisible = 0;
    for (let slot = 0; slot < this.nSlots(step); slot++) {
      const visible = this.sees(step, layer, query, slot);
      const weight = visible ? this.weight(step, layer, head, query, slot) : 0;
      if (!this.rows.sumsToOne) total += weight;
      nVisible += visible;
      cells.push({ slot, visible, weight, relation: this.relation(step, own, slot) });
    }
    const sink = cells[0].weight;
    const seesSink = cells[0].visible;
    for (const cell of cells) {
      cell.share = total > 0 ? cell.weight / total : 0;
      cell.chance = cell.visible ? 1 / nVisible : 0;
      const rest = total - sink;
      cell.restShare = cell.slot === 0 || rest <= 0 ? NaN : cell.weight / rest;
      cell.restChance = cell.visible && cell.slot > 0 ? 1 / (nVisible - seesSink) : NaN;
    }
    return cells;
  }

  relation(step, own, slot) {
    if (slot === own) return "the query itself";
    if (slot === 0) return "sink (slot 0)";
    const writtenAt = this.slots.step[slot];
    if (writtenAt === step && step > 0) return "sibling";
    if (writtenAt === 0) return "prompt";
    return this.members[writtenAt].length > 1 ? "earlier set" : "earlier single token";
  }

  // Whether another trace wrote the same tokens up to and including a step.
  holdsSameTokens(other, step) {
    if (other.nSteps < step || this.nSlots(step) !== other.nSlots(step)) return false;
    for (let slot = 0; slot < this.nSlots(step); slot++) {
      if (this.slots.token[slot] !== other.slots.token[slot]) return false;
      if (this.slots.step[slot] !== other.slots.step[slot]) return false;
    }
    return true;
  }
}

// SentencePiece's BPE (its src/bpe_model.cc), with a cache of short units: see tokenizer/bpe.py.
//
// Texts are UTF-8 in which a space stands for U+2581. They and the pieces are followed by 16 bytes that may be read.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first bytes of a text are the low ones of a word");

namespace {

using Byte = uint8_t;

struct Slot {
    uint32_t tag;  // half of the hash
    int32_t id;    // -1: none
};

struct Vocabulary {
    const Byte* bytes;      // of all pieces, one after another
    const int64_t* starts;  // (pieces + 1,): where each begins; one without bytes is in no text
    const float* scores;    // (pieces,): the highest is merged first
    const Byte* fixed;      // (pieces,): symbols of the user, which stand as they are
    const int32_t* alone;   // (256,): ids for the bytes of characters without a piece
    const Byte* together;   // (8192,) bits: whether some piece holds these two bytes side by side
    Slot* table;            // (slots,): pieces by hash
    int64_t slots;          // a power of two
    int64_t pieces;
    int64_t longest_fixed;  // bytes
};

// Units up to KEY bytes are kept with their ids, if those are at most IDS: a line of the processor's cache.
constexpr int KEY = 16, IDS = 11;
struct Kept {
    uint64_t low, high;
    Byte size, count;  // size 0: nothing is kept here
    int32_t ids[IDS];

    bool holds(uint64_t l, uint64_t h, int64_t s) const { return low == l && high == h && size == s; }
};
static_assert(sizeof(Kept) == 64);

// Units are looked up in blocks, for which the memory is asked before the first of them is needed.
constexpr int BLOCK = 32;
struct Unit {
    const Byte* from;
    int64_t size;
    uint64_t low, high;
    Kept* pair;
};

uint64_t word(const Byte* from, int64_t size) {
    uint64_t word;
    std::memcpy(&word, from, 8);
    return size >= 8 ? word : size <= 0 ? 0 : word & ((uint64_t(1) << 8 * size) - 1);
}

// The multipliers are odd ones of xxHash.
uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15;
    return hash ^ hash >> 29;
}

uint64_t hash_of(const Byte* from, int64_t size) {
    uint64_t hash = 0xC2B2AE3D27D4EB4F;
    for (; size > 0; from += 8, size -= 8) hash = mix(hash, word(from, size));
    return hash;
}

int64_t length(const Vocabulary& v, int32_t id) { return v.starts[id + 1] - v.starts[id]; }

// The id of a piece; -1: it is none.
int32_t find(const Vocabulary& v, const Byte* from, int64_t size) {
    const uint64_t hash = hash_of(from, size);
    for (uint64_t at = hash;; at++) {
        const Slot slot = v.table[at & (v.slots - 1)];
        if (slot.id < 0) return -1;
        const bool equal = slot.tag == uint32_t(hash >> 32) && length(v, slot.id) == size;
        if (equal && !std::memcmp(v.bytes + v.starts[slot.id], from, size)) return slot.id;
    }
}

int64_t character(Byte first) { return first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4; }

struct Symbol {
    int32_t start, size;  // size 0: part of the one before it
    int32_t previous, next, id;
};

struct Pair {
    float score;
    int32_t left, right, id;

    bool operator<(const Pair& other) const {
        return score < other.score || (score == other.score && left > other.left);
    }
};

struct Merges {
    const Vocabulary& v;
    std::vector<Symbol> symbols;
    std::vector<Pair> heap;

    bool fixed(int32_t id) const { return id >= 0 && v.fixed[id]; }

    void consider(const Byte* unit, int32_t left, int32_t right) {
        if (left < 0 || right < 0) return;
        const Symbol &a = symbols[left], &b = symbols[right];
        if (fixed(a.id) || fixed(b.id)) return;
        const int32_t id = find(v, unit + a.start, a.size + b.size);
        if (id < 0) return;
        heap.push_back({v.scores[id], left, right, id});
        std::push_heap(heap.begin(), heap.end());
    }

    void split(const Byte* unit, int32_t size) {
        symbols.clear();
        for (int32_t start = 0; start < size;) {
            int32_t bytes = std::min<int64_t>(v.longest_fixed, size - start), id = -1;
            for (; bytes > 0; bytes--) {
                id = find(v, unit + start, bytes);
                if (fixed(id)) break;
            }
            if (bytes == 0) {
                bytes = character(unit[start]);
                id = find(v, unit + start, bytes);
            }
            const int32_t at = symbols.size();
            symbols.push_back({start, bytes, at - 1, start + bytes < size ? at + 1 : -1, id});
            start += bytes;
        }
    }

    // Writes the ids of one unit to `ids`; returns where they end.
    int32_t* encode(const Byte* unit, int32_t size, int32_t* ids) {
        split(unit, size);
        for (size_t i = 1; i < symbols.size(); i++) consider(unit, i - 1, i);
        while (!heap.empty()) {
            std::pop_heap(heap.begin(), heap.end());
            const Pair pair = heap.back();
            heap.pop_back();
            Symbol &left = symbols[pair.left], &right = symbols[pair.right];
            // Otherwise one of them has been merged with another since.
            if (!left.size || !right.size || left.size + right.size != length(v, pair.id)) continue;
            left.size += right.size;
            left.id = pair.id;
            left.next = right.next;
            if (right.next >= 0) symbols[right.next].previous = pair.left;
            right.size = 0;
            consider(unit, left.previous, pair.left);
            consider(unit, pair.left, left.next);
        }
        for (int32_t i = 0; i >= 0; i = symbols[i].next) {
            const Symbol& symbol = symbols[i];
            if (symbol.id >= 0) {
                *ids++ = symbol.id;
            } else {
                for (int32_t j = 0; j < symbol.size; j++) *ids++ = v.alone[unit[symbol.start + j]];
            }
        }
        return ids;
    }
};

// The next BLOCK units from `from` on, or as many as there are; returns their number.
int cut(const Vocabulary& v, Kept* kept, int64_t entries, const Byte* from, const Byte* end, Unit* units) {
    int count = 0;
    for (; count < BLOCK && from < end; count++) {
        const Byte* to = from + 1;
        for (; to < end; to++) {
            const int both = to[-1] << 8 | to[0];
            if (!(v.together[both >> 3] >> (both & 7) & 1)) break;
        }
        const int64_t size = to - from;
        const uint64_t low = word(from, size), high = word(from + 8, size - 8);
        const uint64_t set = mix(mix(size, low), high) >> 20 & (entries / 2 - 1);
        units[count] = {from, size, low, high, kept + 2 * set};
        __builtin_prefetch(kept + 2 * set);
        from = to;
    }
    return count;
}

}  // namespace

extern "C" {

// Fills the table.
void index_pieces(const Vocabulary* v) {
    for (int64_t id = 0; id < v->pieces; id++) {
        if (!length(*v, id)) continue;
        const uint64_t hash = hash_of(v->bytes + v->starts[id], length(*v, id));
        uint64_t at = hash;
        while (v->table[at & (v->slots - 1)].id >= 0) at++;
        v->table[at & (v->slots - 1)] = {uint32_t(hash >> 32), int32_t(id)};
    }
}

// `bytes`: `texts` texts one after another, of which each ends at its `ends`. `ids` has room for one id of each byte
// and IDS more; `counts` says how many each text has. `kept`: (entries,), a power of two, zero at first, for one caller
// at a time; of each pair of entries the first was used last.
void encode(const Vocabulary* v, Kept* kept, int64_t entries, const Byte* bytes, const int64_t* ends, int64_t texts,
            int32_t* ids, int64_t* counts) {
    Merges merges{*v, {}, {}};
    Unit units[BLOCK];
    const Byte* from = bytes;
    for (int64_t text = 0; text < texts; text++) {
        const int32_t* const first = ids;
        while (from < bytes + ends[text]) {
            const int count = cut(*v, kept, entries, from, bytes + ends[text], units);
            for (int i = 0; i < count; i++) {
                const Unit& unit = units[i];
                Kept* const pair = unit.pair;
                const bool other = !pair[0].holds(unit.low, unit.high, unit.size);
                if (!other || pair[1].holds(unit.low, unit.high, unit.size)) {
                    std::memcpy(ids, pair[other].ids, sizeof pair->ids);
                    ids += pair[other].count;
                    if (other) std::swap(pair[0], pair[1]);
                    continue;
                }
                const int32_t* const start = ids;
                ids = merges.encode(unit.from, unit.size, ids);
                if (unit.size > KEY || ids - start > IDS) continue;
                Kept& place = pair[pair[0].size > 0];
                place = {unit.low, unit.high, Byte(unit.size), Byte(ids - start), {}};
                std::copy(start, static_cast<const int32_t*>(ids), place.ids);
            }
            from = units[count - 1].from + units[count - 1].size;
        }
        counts[text] = ids - first;
    }
}
}

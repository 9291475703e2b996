// SentencePiece's BPE (its src/bpe_model.cc) with a cache of short units; ../bpe.py explains why the ids are equal.
//
// Texts are UTF-8 with plain spaces instead of U+2581. At least 16 readable bytes follow the texts and the tokens.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first byte of a text must be the low byte of a word");

namespace {

using Byte = uint8_t;

struct Slot {
    uint32_t tag;  // upper half of the hash
    int32_t id;    // -1: empty slot
};

struct Vocabulary {
    const Byte* bytes;      // all tokens, one after another
    const int64_t* starts;  // (tokens + 1,): start of each token; an empty token occurs in no text
    const float* scores;    // (tokens,): the highest score is merged first
    const Byte* fixed;      // (tokens,): whether it is a user-defined symbol, which never merges
    const int32_t* alone;   // (256,): ids of the byte tokens, for characters without a token
    const Byte* together;   // (8192,) bytes of bits: whether a token contains these two adjacent bytes
    Slot* table;            // (slots,): hash table of the tokens
    int64_t slots;          // a power of two
    int64_t tokens;
    int64_t longest_fixed;  // bytes
};

// The cache holds units of at most KEY bytes with at most IDS ids, so that an entry fills one CPU cache line.
constexpr int KEY = 16, IDS = 11;
struct Kept {
    uint64_t low, high;
    Byte size, count;  // size 0: empty entry
    int32_t ids[IDS];

    bool holds(uint64_t l, uint64_t h, int64_t s) const { return low == l && high == h && size == s; }
};
static_assert(sizeof(Kept) == 64);

// Units are looked up in blocks: all entries of a block are prefetched before the first one is read.
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

// The multiplier is 2^64 divided by the golden ratio, as in splitmix64.
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

// Returns the id of the token with these bytes, or -1.
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
    int32_t start, size;  // size 0: merged into the symbol before it
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

    // Writes the ids of one unit to `ids` and returns the end of what it wrote.
    int32_t* encode(const Byte* unit, int32_t size, int32_t* ids) {
        split(unit, size);
        for (size_t i = 1; i < symbols.size(); i++) consider(unit, i - 1, i);
        while (!heap.empty()) {
            std::pop_heap(heap.begin(), heap.end());
            const Pair pair = heap.back();
            heap.pop_back();
            Symbol &left = symbols[pair.left], &right = symbols[pair.right];
            // Skip a stale pair: one of its symbols has been merged with another one since.
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

// Splits off the next units from `from` on, at most BLOCK of them, and returns their number.
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

// Fills the hash table.
void index_tokens(const Vocabulary* v) {
    for (int64_t id = 0; id < v->tokens; id++) {
        if (!length(*v, id)) continue;
        const uint64_t hash = hash_of(v->bytes + v->starts[id], length(*v, id));
        uint64_t at = hash;
        while (v->table[at & (v->slots - 1)].id >= 0) at++;
        v->table[at & (v->slots - 1)] = {uint32_t(hash >> 32), int32_t(id)};
    }
}

// Encodes `texts` texts: `bytes` holds them one after another, text i ends at ends[i]. Writes the ids to `ids`, which has
// room for one id per byte and IDS more, and the number of ids of each text to `counts`. `kept` is the cache: (entries,),
// a power of two, zeroed at first, for one caller at a time. Of each pair of entries the first is the most recent.
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

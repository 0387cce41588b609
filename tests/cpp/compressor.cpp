/* The compressor from C++: golden compressions in every layout, the engine's own compressions done again on a
   host's cache, bit for bit, and what is refused. Started by tests/cpp/run with the folder that
   golden_compactions.py wrote. */
#include <reasoning_rpc/compressor.hpp>

#include "check.hpp"
#include "golden.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>

namespace rrpc = reasoning_rpc;
using bytes = std::vector<std::byte>;

/* Keys and values of some sequences, [sequence][KV head][entry][head_dim], placed as a host might have them. */
class host {
public:
    enum layout { dense, head_major, token_major, layouts };

    host(layout as, std::size_t sequences, std::size_t kv_heads, std::size_t length, std::size_t entry_bytes,
         std::uint32_t element)
        : as_(as), sequences_(sequences), heads_(kv_heads), entry_bytes_(entry_bytes),
          block_(as == dense ? length + 3 : 16), width_(as == dense ? 1 : (length + block_ - 1) / block_)
    {
        // Blocks go backwards and leave gaps, so that a wrong order shows.
        const std::size_t blocks = sequences * width_;
        for (std::size_t i = 0; i < blocks; ++i) table.push_back(std::int32_t(as == dense ? i : 2 * (blocks - i) - 1));
        for (bytes *part : {&keys, &values}) part->assign((2 * blocks + 1) * block_ * heads_ * entry_bytes, std::byte{0x7f});
        lengths.assign(sequences, std::int32_t(length));
        layer.keys = keys.data();
        layer.values = values.data();
        const std::int64_t entry = std::int64_t(entry_bytes / element), block = std::int64_t(block_), heads = std::int64_t(heads_);
        const std::int64_t strides[] = {block * heads * entry, as == token_major ? entry : block * entry,
                                        as == token_major ? heads * entry : entry};
        std::copy(strides, strides + 3, layer.key_strides);
        std::copy(strides, strides + 3, layer.value_strides);
        batch.sequences = batch.row_count = std::uint32_t(sequences);
        batch.block_entries = std::uint32_t(block_);
        batch.lengths = lengths.data();
        if (as == dense) return;
        batch.block_table = table.data();
        batch.block_table_stride = std::int64_t(width_);
        batch.block_count = std::uint32_t(2 * blocks + 1);
    }
    host(const host &) = delete;
    host &operator=(const host &) = delete;

    std::byte *key(std::size_t sequence, std::size_t head, std::size_t entry) { return keys.data() + at(sequence, head, entry); }
    std::byte *value(std::size_t sequence, std::size_t head, std::size_t entry) { return values.data() + at(sequence, head, entry); }

    /* [sequence][KV head][entry][head_dim] of the first `length` entries. */
    bytes gathered(bool of_keys, std::size_t length)
    {
        bytes all;
        for (std::size_t sequence = 0; sequence < sequences_; ++sequence)
            for (std::size_t head = 0; head < heads_; ++head)
                for (std::size_t entry = 0; entry < length; ++entry) {
                    const std::byte *from = of_keys ? key(sequence, head, entry) : value(sequence, head, entry);
                    all.insert(all.end(), from, from + entry_bytes_);
                }
        return all;
    }
    void place(const bytes &all_keys, const bytes &all_values, std::size_t length)
    {
        std::size_t from = 0;
        for (std::size_t sequence = 0; sequence < sequences_; ++sequence)
            for (std::size_t head = 0; head < heads_; ++head)
                for (std::size_t entry = 0; entry < length; ++entry, from += entry_bytes_) {
                    std::memcpy(key(sequence, head, entry), all_keys.data() + from, entry_bytes_);
                    std::memcpy(value(sequence, head, entry), all_values.data() + from, entry_bytes_);
                }
    }

    bytes keys, values;
    std::vector<std::int32_t> table, lengths;
    rrpc::kv_layer layer;
    rrpc::kv_batch batch;

private:
    std::size_t at(std::size_t sequence, std::size_t head, std::size_t entry) const
    {
        const auto block = std::size_t(table[sequence * width_ + entry / block_]);
        const std::size_t inside = entry % block_;
        const std::size_t step = as_ == token_major ? inside * heads_ + head : head * block_ + inside;
        return (block * block_ * heads_ + step) * entry_bytes_;
    }

    layout as_;
    std::size_t sequences_, heads_, entry_bytes_, block_, width_;
};

static bytes read(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
    bytes all(content.size());
    std::transform(content.begin(), content.end(), all.begin(), [](char one) { return std::byte(one); });
    return all;
}

/* Candidates of each kept set that are the published code's too. */
static bool agrees(const std::vector<std::uint32_t> &found, const std::vector<std::uint32_t> &expected, bool exactly)
{
    if (found == expected || exactly) return found == expected;
    std::vector<std::uint32_t> both;
    std::set_intersection(found.begin(), found.end(), expected.begin(), expected.end(), std::back_inserter(both));
    return found.size() == expected.size() && both.size() >= 62; // it sums in bf16 there
}

static void golden_case(const std::string &path)
{
    std::uint32_t heads = 0, kv_heads = 0, head_dim = 0, prompt = 0, P = 0, R = 0, c = 0, done = 0, kernel = 0, batch = 0,
                  before = 0, after = 0, aggregation = 0, pooling = 0, dtype = 0;
    std::ifstream(path) >> heads >> kv_heads >> head_dim >> prompt >> P >> R >> c >> done >> kernel >> batch >> before >>
        after >> aggregation >> pooling >> dtype;
    if (!CHECK(dtype != 0)) return;
    rrpc::compressor_options options;
    options.heads = heads;
    options.kv_heads = kv_heads;
    options.head_dim = head_dim;
    options.dtype = dtype;
    options.interval = P;
    options.window = R;
    options.ratio = c;
    options.kernel = kernel;
    options.aggregation = aggregation;
    options.pooling = pooling;
    const rrpc::compressor compressor(options);
    const std::uint32_t element = dtype == RRPC_DTYPE_F32 ? 4 : 2;
    const bytes queries = read(path + ".q"), keys = read(path + ".k"), values = read(path + ".v");
    const bytes keys_after = read(path + ".k_out"), values_after = read(path + ".v_out");
    const bytes indices = read(path + ".indices");
    std::vector<std::uint32_t> expected(indices.size() / 4);
    std::memcpy(expected.data(), indices.data(), indices.size());
    const std::vector<std::int32_t> prompts(batch, std::int32_t(prompt)), compressions(batch, std::int32_t(done));
    rrpc::query_window window;
    window.queries = queries.data();
    window.ring_tokens = R;
    window.dtype = dtype;
    const std::int64_t strides[] = {std::int64_t(heads) * R * head_dim, head_dim, std::int64_t(R) * head_dim};
    std::copy(strides, strides + 3, window.strides);

    bytes first[2];
    for (int as = 0; as < host::layouts; ++as)
        for (const bool in_parts : {false, true}) {
            host cache(host::layout(as), batch, kv_heads, before, head_dim * element, element);
            cache.place(keys, values, before);
            cache.batch.prompt_lengths = prompts.data();
            cache.batch.compressions = compressions.data();
            rrpc::workspace space;
            rrpc::compression_plan plan;
            if (in_parts) {
                std::vector<float> scores;
                compressor.score(cache.layer, cache.batch, window, scores, space);
                plan = compressor.select(0, cache.batch, scores, space);
                compressor.apply(cache.layer, cache.batch, plan, space);
            } else {
                plan = compressor.compress(cache.layer, cache.batch, window, space);
            }
            CHECK(plan.sets == (aggregation == RRPC_AGGREGATION_LAYER ? 1 : kv_heads));
            if (!CHECK(plan.kept_len == expected.size())) return;
            CHECK(std::all_of(plan.new_lengths, plan.new_lengths + batch, [&](std::int32_t one) { return one == std::int32_t(after); }));
            CHECK(agrees({plan.kept, plan.kept + plan.kept_len}, expected, dtype == RRPC_DTYPE_F32));
            const bytes found[] = {cache.gathered(true, after), cache.gathered(false, after)};
            if (first[0].empty()) std::copy(found, found + 2, first);
            CHECK(found[0] == first[0] && found[1] == first[1]);
            if (dtype == RRPC_DTYPE_F32) CHECK(found[0] == keys_after && found[1] == values_after);
        }
}

/* A layer of a sequence's cache, copied out: [KV head][entry][head_dim]. */
struct copied_layer {
    std::vector<std::vector<std::uint32_t>> positions; // [KV head][entry]
    bytes keys, values;

    copied_layer(const rrpc::sequence &sequence, std::uint32_t layer, std::uint32_t kv_heads) : positions(kv_heads)
    {
        for (std::uint32_t head = 0; head < kv_heads; ++head) {
            const rrpc::cache_view view = sequence.cache(layer, head);
            for (std::uint64_t entry = 0; entry < view.length; ++entry) {
                positions[head].push_back(view.position(entry));
                add(keys, view.key(entry), view.entry_stride);
                add(values, view.value(entry), view.entry_stride);
            }
        }
    }

private:
    static void add(bytes &to, const void *from, std::uint64_t size)
    {
        to.insert(to.end(), static_cast<const std::byte *>(from), static_cast<const std::byte *>(from) + size);
    }
};

/* Each compression of a text is done again on a copy of the cache, with the sets that the engine kept: what a
   host then has is what the engine has, bit for bit. */
static void engine_and_compressor_agree(std::uint32_t aggregation)
{
    rrpc::engine_options opening;
    opening.threads = 1;
    opening.cache_dtype = RRPC_DTYPE_F32;
    opening.block_entries = 16;
    const rrpc::engine engine(std::getenv("CPP_MODEL"), opening);
    const rrpc_engine_info info = engine.info();
    const std::size_t entry_bytes = info.head_dim * sizeof(float), prompt = golden::prompt.size();
    rrpc::sequence_options options(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = golden::P;
    options.window = golden::R;
    options.ratio = golden::c;
    options.aggregation = aggregation;
    options.record_kept = 1;
    rrpc::sequence sequence(engine, options);
    sequence.append_tokens(golden::prompt);
    sequence.step();

    rrpc::compressor_options like;
    like.heads = info.heads;
    like.kv_heads = info.kv_heads;
    like.head_dim = info.head_dim;
    like.dtype = RRPC_DTYPE_F32;
    like.interval = golden::P;
    like.window = golden::R;
    like.ratio = golden::c;
    const rrpc::compressor compressor(like);
    std::size_t seen = 0;
    for (const std::uint32_t token : golden::rpc) {
        std::vector<copied_layer> before;
        for (std::uint32_t layer = 0; layer < info.layers; ++layer) before.emplace_back(sequence, layer, info.kv_heads);
        sequence.accept(token);
        sequence.step();
        const std::vector<rrpc::compression> log = sequence.compressions(true);
        for (; seen < log.size(); ++seen) {
            const rrpc::compression &one = log[seen];
            const copied_layer &had = before[one.layer], left(sequence, one.layer, info.kv_heads);
            const std::size_t length = had.positions[0].size() + 1, now = left.positions[0].size();
            if (!CHECK(one.len_before == length && one.len_after == now && now < length)) return;
            std::vector<std::uint32_t> kept;
            for (std::uint32_t set = 0; set < one.kept_sets; ++set) {
                const std::vector<std::uint32_t> &of = had.positions[set];
                for (const std::uint32_t position : one.kept[set]) {
                    const auto found = std::lower_bound(of.begin(), of.end(), position);
                    if (!CHECK(found != of.end() && *found == position)) return;
                    kept.push_back(std::uint32_t(found - of.begin()) - std::uint32_t(prompt));
                }
            }
            for (int as = 0; as < host::layouts; ++as) {
                host cache(host::layout(as), 1, info.kv_heads, length, entry_bytes, sizeof(float));
                cache.place(had.keys, had.values, length - 1);
                for (std::uint32_t head = 0; head < info.kv_heads; ++head) {
                    // The entry of the step itself, which the window holds.
                    const std::size_t newest = ((head + 1) * now - 1) * entry_bytes;
                    std::memcpy(cache.key(0, head, length - 1), left.keys.data() + newest, entry_bytes);
                    std::memcpy(cache.value(0, head, length - 1), left.values.data() + newest, entry_bytes);
                }
                const auto prompts = std::int32_t(prompt), compressions = std::int32_t(seen / info.layers);
                cache.batch.prompt_lengths = &prompts;
                cache.batch.compressions = &compressions;
                rrpc::compression_plan plan;
                const auto count = std::uint32_t(one.kept[0].size());
                const auto new_length = std::int32_t(now);
                const std::size_t blocks_before = (length + 15) / 16, blocks_now = (now + 15) / 16;
                plan.kept_counts = &count;
                plan.kept = kept.data();
                plan.kept_len = kept.size();
                plan.new_lengths = &new_length;
                if (as != host::dense) {
                    plan.freed_blocks = cache.table.data() + blocks_now;
                    plan.freed_count = blocks_before - blocks_now;
                }
                plan.sequences = 1;
                plan.sets = one.kept_sets;
                rrpc::workspace space(compressor.sizes(cache.batch).workspace_bytes);
                compressor.apply(cache.layer, cache.batch, plan, space);
                CHECK(cache.gathered(true, now) == left.keys && cache.gathered(false, now) == left.values);
            }
        }
    }
    CHECK(seen == golden::compressions.size());
}

/* What select gave, changed by the host; plans that are none; a workspace that is too small. */
static void plans_are_checked()
{
    rrpc::compressor_options options;
    options.heads = 4;
    options.kv_heads = 2;
    options.head_dim = 8;
    options.dtype = RRPC_DTYPE_F32;
    options.interval = 16;
    options.window = 4;
    options.ratio = 4;
    const rrpc::compressor compressor(options);
    CHECK(!compressor.due(19, 0) && compressor.due(20, 0) && !compressor.due(20, 1) && compressor.due(36, 1));
    host cache(host::head_major, 1, 2, 40, 32, 4);
    const std::int32_t prompt = 20, none = 0;
    cache.batch.prompt_lengths = &prompt;
    cache.batch.compressions = &none;
    std::vector<float> scores(2 * 16), queries(4 * 4 * 8, 0.5F);
    std::iota(scores.begin(), scores.end(), 0.F);
    rrpc::workspace space;
    const rrpc::compression_plan plan = compressor.select(0, cache.batch, scores, space);
    CHECK(plan.kept_counts[0] == 4 && plan.new_lengths[0] == 28);
    std::vector<std::uint32_t> kept{0, 1, 2, 3};
    rrpc::compression_plan own = plan;
    own.kept = kept.data();
    const bytes had = cache.keys;
    compressor.apply(cache.layer, cache.batch, own, space);
    CHECK(cache.keys == had); // the first candidates stay where they are, the window is alike
    for (const std::vector<std::uint32_t> &hostile : {std::vector<std::uint32_t>{3, 2, 1, 0}, {0, 1, 2, 16}, {0, 0, 1, 2}}) {
        own.kept = hostile.data();
        try {
            compressor.apply(cache.layer, cache.batch, own, space);
            CHECK(false);
        } catch (const rrpc::error &error) {
            CHECK(error.code() == RRPC_ERROR_INVALID_ARGUMENT);
        }
    }
    rrpc::query_window window;
    window.queries = queries.data();
    window.ring_tokens = 4;
    window.dtype = RRPC_DTYPE_F32;
    const std::int64_t strides[] = {128, 32, 8};
    std::copy(strides, strides + 3, window.strides);
    rrpc::workspace small(8);
    const auto refused = compressor.try_compress(cache.layer, cache.batch, window, small);
    CHECK(!refused && refused.error().code() == RRPC_ERROR_BUFFER_TOO_SMALL && small.size() == 8);
    const auto made = rrpc::compressor::try_create(rrpc::compressor_options());
    CHECK(!made && made.error().code() == RRPC_ERROR_INVALID_ARGUMENT);
}

/* DLPack's structs, as its specification gives them. */
struct dl_tensor {
    void *data;
    std::int32_t device_type, device_id, ndim;
    std::uint8_t code, bits;
    std::uint16_t lanes;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};
struct dl_managed {
    dl_tensor tensor;
    int *deleted; // manager_ctx
    void (*deleter)(dl_managed *);
};

static void tensors_are_let_go_once()
{
    int deleted = 0;
    std::vector<float> memory(2 * 3 * 5 * 8);
    std::int64_t shape[] = {2, 3, 5, 8};
    const auto let_go = [](dl_managed *self) { ++*self->deleted; };
    dl_managed managed{{memory.data(), 1, 0, 4, 2, 32, 1, shape, nullptr, 0}, &deleted, let_go}, values = managed;
    values.tensor.code = 9;
    try {
        rrpc::tensor refused(&values, false);
        CHECK(false);
    } catch (const rrpc::error &error) {
        CHECK(error.code() == RRPC_ERROR_INVALID_ARGUMENT && deleted == 0);
    }
    values.tensor.code = 2;
    {
        rrpc::tensor first(&managed, false), moved = std::move(first), second(&values, false);
        CHECK(moved.info().dimensions == 4 && moved.info().shape[2] == 5);
        const rrpc::kv_layer layer = rrpc::layer_of(moved, second, RRPC_LAYOUT_HEAD_MAJOR);
        CHECK(layer.keys == memory.data() && layer.key_strides[0] == 120 && layer.key_strides[1] == 40 && layer.key_strides[2] == 8);
        const rrpc::query_window window = rrpc::window_of(moved, RRPC_LAYOUT_TOKEN_MAJOR);
        CHECK(window.ring_tokens == 3 && window.dtype == RRPC_DTYPE_F32 && deleted == 0);
    }
    CHECK(deleted == 2);
}

int main(int argc, char **argv)
try {
    if (argc != 2) return 2;
    const std::string folder = std::string(argv[1]) + "/";
    std::ifstream names(folder + "cases");
    int cases = 0;
    for (std::string name; names >> name; ++cases) golden_case(folder + name);
    CHECK(cases == 11);
    engine_and_compressor_agree(RRPC_AGGREGATION_LAYER);
    engine_and_compressor_agree(RRPC_AGGREGATION_KV_HEAD);
    plans_are_checked();
    tensors_are_let_go_once();
    std::printf("tests: %d passed, %d failed\n", passed, failed);
    return failed != 0;
} catch (const std::exception &error) {
    std::printf("compressor.cpp: %s\n", error.what());
    return 1;
}

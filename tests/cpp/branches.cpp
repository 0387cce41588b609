/* Forks, rewinds, the cache, and the functions named try_: compiled with and without exceptions. */
#include <reasoning_rpc.hpp>

#include "check.hpp"
#include "golden.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace rrpc = reasoning_rpc;
using ids = std::vector<std::uint32_t>;

/* Greedy steps until the text has `length` tokens. */
static ids continued(rrpc::sequence &sequence, std::size_t length)
{
    while (sequence.tokens().size() < length) {
        while (sequence.pending() > 0)
            if (!CHECK(sequence.try_step().has_value())) return {};
        sequence.sample();
    }
    return sequence.tokens();
}

int main()
{
    const auto missing = rrpc::engine::try_open("/nowhere");
    CHECK(!missing && missing.error().code() == RRPC_ERROR_MODEL);
    CHECK(std::string(missing.error().what()).find("/nowhere") != std::string::npos);

    rrpc::engine_options opening;
    opening.threads = 1;
    opening.cache_dtype = RRPC_DTYPE_F32;
    opening.block_entries = 16;
    auto opened = rrpc::engine::try_open(std::getenv("CPP_MODEL"), opening);
    if (!CHECK(opened.has_value())) return 1;
    const rrpc::engine engine = *std::move(opened);
    rrpc::sequence_options options(engine);
    options.policy = RRPC_POLICY_NONE;
    options.temperature = 0;
    options.repetition_penalty = 1;
    options.window = 0; // not read without compression

    auto created = rrpc::sequence::try_create(engine, options);
    if (!CHECK(created.has_value())) return 1;
    rrpc::sequence &original = *created;
    CHECK(original.try_append_tokens(golden::prompt).has_value());
    const auto outside = original.try_append_tokens(ids{1U << 30});
    CHECK(!outside && outside.error().code() == RRPC_ERROR_INVALID_ARGUMENT);

    const std::size_t given = golden::prompt.size();
    ids expected = golden::prompt;
    expected.insert(expected.end(), golden::full.begin(), golden::full.begin() + 60);
    continued(original, given + 20);
    auto forked = original.try_fork();
    if (!CHECK(forked.has_value())) return 1;
    CHECK(continued(*forked, given + 60) == expected);
    CHECK(continued(original, given + 60) == expected);

    // A rewind writes what was written; lengths that there are not are refused.
    CHECK(forked->try_rewind(given + 5).has_value() && forked->pending() == 1);
    CHECK(forked->tokens() == ids(expected.begin(), expected.begin() + std::ptrdiff_t(given + 5)));
    CHECK(continued(*forked, given + 60) == expected);
    const auto beyond = forked->try_rewind(given + 61);
    CHECK(!beyond && beyond.error().code() == RRPC_ERROR_INVALID_ARGUMENT);

    // The same text, the same entries, at the positions 0, 1, 2, ...
    const rrpc_engine_info info = engine.info();
    for (std::uint32_t layer = 0; layer < info.layers; ++layer)
        for (std::uint32_t head = 0; head < info.kv_heads; ++head) {
            const rrpc::cache_view one = original.cache(layer, head), two = forked->cache(layer, head);
            CHECK(one.length == given + 59 && two.length == one.length && one.dtype == RRPC_DTYPE_F32);
            bool same = true;
            for (std::uint64_t entry = 0; entry < one.length; ++entry)
                for (std::uint32_t i = 0; i < one.head_dim; ++i)
                    same = same && one.position(entry) == entry && two.position(entry) == entry &&
                           static_cast<const float *>(one.key(entry))[i] == static_cast<const float *>(two.key(entry))[i] &&
                           static_cast<const float *>(one.value(entry))[i] == static_cast<const float *>(two.value(entry))[i];
            CHECK(same);
        }
    // The first layer's keys in a cache of int8 are these but for half a step, 1/254 of a row's largest.
    opening.cache_dtype = RRPC_DTYPE_I8;
    const auto narrow = rrpc::engine::try_open(std::getenv("CPP_MODEL"), opening);
    if (!CHECK(narrow.has_value())) return 1;
    auto rounded = rrpc::sequence::try_create(*narrow, options);
    if (!CHECK(rounded.has_value())) return 1;
    CHECK(rounded->try_append_tokens(golden::prompt).has_value());
    while (rounded->pending() > 0)
        if (!CHECK(rounded->try_step().has_value())) return 1;
    const rrpc::cache_view exact = original.cache(0, 0), quantized = rounded->cache(0, 0);
    CHECK(quantized.dtype == RRPC_DTYPE_I8 && quantized.length == given && exact.key_scale(0) == 1);
    for (std::uint64_t entry = 0; entry < given; ++entry) {
        const float *key = static_cast<const float *>(exact.key(entry));
        const std::int8_t *bytes = static_cast<const std::int8_t *>(quantized.key(entry));
        CHECK(quantized.value_scale(entry) > 0);
        float largest = 0;
        for (std::uint32_t i = 0; i < exact.head_dim; ++i) largest = std::max(largest, std::abs(key[i]));
        for (std::uint32_t i = 0; i < exact.head_dim; ++i)
            CHECK(std::abs(float(bytes[i]) * quantized.key_scale(entry) - key[i]) <= largest / 254 * 1.00001F);
    }
    const rrpc::sequence &seen = original;
    static_assert(std::is_same_v<decltype(seen.cache(0, 0)), rrpc::cache_view>);

    // Forks of one seed write the same, forks of others differ.
    options.temperature = 1;
    rrpc::sequence drawn(engine, options);
    drawn.append_tokens(golden::prompt);
    continued(drawn, given + 1);
    ids texts[3];
    for (int fork = 0; fork < 3; ++fork) {
        rrpc::sequence other = drawn.fork();
        other.set_seed(fork == 2 ? 6 : 5);
        texts[fork] = continued(other, given + 60);
    }
    CHECK(texts[0] == texts[1] && texts[0] != texts[2]);

    std::printf("tests: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}

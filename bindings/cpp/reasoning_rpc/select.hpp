/*
 * reasoning_rpc/select.hpp: sequences whose cache a callable of the program's compresses.
 *
 *     // The newest of each KV head, as many as rpc would keep.
 *     auto newest = [](const reasoning_rpc::selection &seen) {
 *         reasoning_rpc::kept_candidates kept(seen.kv_heads());
 *         for (std::uint32_t head = 0; head < seen.kv_heads(); ++head) {
 *             const std::size_t count = seen.scores(head).size(), most = seen.most() / seen.kv_heads();
 *             for (std::size_t i = count - std::min(count, most); i < count; ++i) kept[head].push_back(std::uint32_t(i));
 *         }
 *         return kept;
 *     };
 *     reasoning_rpc::sequence sequence = reasoning_rpc::selecting(engine, options, newest);
 *
 * What reasoning_rpc.h says of RRPC_POLICY_CALLBACK and rrpc_sequence_select_callback holds here.
 */

#ifndef REASONING_RPC_SELECT_HPP
#define REASONING_RPC_SELECT_HPP

#include <reasoning_rpc.hpp>

#include <algorithm>

namespace reasoning_rpc {

/** What a callable that selects sees of one layer of a sequence, during its call. */
class selection {
public:
    explicit selection(const rrpc_sequence_select_request &request) : request_(request)
    {
        scores_.reserve(request.kv_heads);
        positions_.reserve(request.kv_heads);
        std::size_t at = 0;
        for (std::uint32_t head = 0; head < request.kv_heads; ++head) {
            const std::size_t count = request.candidates[head];
            scores_.emplace_back(request.scores + at, count);
            positions_.emplace_back(request.positions + at, count);
            at += count;
        }
    }

    /** The layer, from 0. */
    std::uint32_t layer() const noexcept { return request_.layer; }
    /** KV heads of the layer. */
    std::uint32_t kv_heads() const noexcept { return request_.kv_heads; }
    /** Compressions of the sequence before this one. */
    std::uint32_t compressions() const noexcept { return request_.compressions; }
    /** The most that the KV heads may keep together. */
    std::uint64_t most() const noexcept { return request_.most; }
    /** The scores of a KV head's candidates, from the oldest to the newest. */
    view<float> scores(std::uint32_t kv_head) const { return scores_.at(kv_head); }
    /** The same candidates' positions in the text: indices into sequence::tokens(). */
    view<std::uint32_t> positions(std::uint32_t kv_head) const { return positions_.at(kv_head); }

private:
    const rrpc_sequence_select_request &request_;
    std::vector<view<float>> scores_;
    std::vector<view<std::uint32_t>> positions_;
};

/** Of each KV head the candidates that stay, counted from 0 among its own, ascending. */
using kept_candidates = std::vector<std::vector<std::uint32_t>>;

namespace detail {

/* Hands the answer over; false if it has not a set for each KV head that can be one. */
inline bool answer(const kept_candidates &kept, rrpc_sequence_select_request &request)
{
    if (kept.size() != request.kv_heads) return false;
    std::uint32_t *room = request.kept;
    for (std::uint32_t head = 0; head < request.kv_heads; ++head) {
        if (kept[head].size() > request.candidates[head]) return false;
        request.kept_counts[head] = std::uint32_t(kept[head].size());
        room = std::copy(kept[head].begin(), kept[head].end(), room);
    }
    return true;
}

template <class Callable>
std::int32_t select(rrpc_sequence_select_request *request, void *user_data) noexcept
{
    const auto ask = [&] {
        return answer((*static_cast<Callable *>(user_data))(selection(*request)), *request) ? 0 : 1;
    };
#if defined(__cpp_exceptions)
    try {
        return ask();
    } catch (...) {
        return 1;
    }
#else
    return ask();
#endif
}

} // namespace detail

/**
 * An empty sequence of RRPC_POLICY_CALLBACK with the other options. When a compression is due, `callable` is called
 * once for each layer with a `const selection &` and returns `kept_candidates`; it may not use the sequence. An exception of it, and an
 * answer that cannot be, end the call that generates: it throws RRPC_ERROR_CALLBACK, without the exception's text, and the
 * sequence cannot be used any more.
 *
 * Ownership: the callable moves into the sequence. Forks share it; it is destroyed, in whichever thread, once nothing calls
 * it any more.
 * Threads: it is called in threads of the library's or the caller's, for forks in several at once.
 */
template <class Callable>
sequence selecting(const engine &of, sequence_options options, Callable callable)
{
    auto held = std::make_unique<Callable>(std::move(callable));
    options.policy = RRPC_POLICY_CALLBACK;
    options.select = detail::select<Callable>;
    options.user_data = held.get();
    options.release = [](void *user_data) noexcept { delete static_cast<Callable *>(user_data); };
    sequence made(of, options);
    (void)held.release();
    return made;
}

} // namespace reasoning_rpc

#endif

/*
 * reasoning_rpc/engine.hpp: views and engines. Part of reasoning_rpc.hpp, which includes it.
 */

#ifndef REASONING_RPC_ENGINE_HPP
#define REASONING_RPC_ENGINE_HPP

#include <reasoning_rpc.h>
#include <reasoning_rpc/expected.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace reasoning_rpc {

namespace detail {

struct deleter {
    void operator()(rrpc_engine *engine) const noexcept { rrpc_engine_free(engine); }
    void operator()(rrpc_sequence *sequence) const noexcept { rrpc_sequence_free(sequence); }
};

/* Whether C would cut a path or a name short. */
inline bool has_nul(std::string_view text) noexcept { return text.find('\0') != text.npos; }

/* What `call(data, capacity, &count)` copies out, its size asked for first. */
template <class Container, class Call>
Container copied(Call &&call)
{
    Container out;
    std::size_t count = 0;
    check(call(nullptr, std::size_t{0}, &count));
    if (count == 0) return out;
    out.resize(count);
    check(call(out.data(), out.size(), &count));
    out.resize(count);
    return out;
}

/* The same for a text that may grow between two calls, as figures do. */
template <class Call>
std::string copied_text(Call &&call)
{
    std::string text(4096, '\0');
    for (;;) {
        std::size_t count = 0;
        rrpc_error *found = call(text.data(), text.size(), &count);
        const bool small = rrpc_error_code(found) == RRPC_ERROR_BUFFER_TOO_SMALL;
        if (small) rrpc_error_free(found);
        else check(found);
        text.resize(small ? count + 256 : count);
        if (!small) return text;
    }
}

} // namespace detail

/* ==== Views ==== */

/**
 * Elements that lie one behind the other and belong to somebody else, as std::string_view is for text:
 * made of a pointer and a count, or of anything with data() and size() (vector, array, C++20 span).
 */
template <class T>
class view {
public:
    constexpr view() noexcept = default;
    constexpr view(const T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class Container,
              class = std::enable_if_t<std::is_same_v<
                  std::remove_cv_t<std::remove_pointer_t<decltype(std::data(std::declval<const Container &>()))>>, T>>>
    constexpr view(const Container &container) : data_(std::data(container)), size_(std::size(container))
    {
    }

    constexpr const T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr const T *begin() const noexcept { return data_; }
    constexpr const T *end() const noexcept { return data_ + size_; }
    constexpr const T &operator[](std::size_t index) const { return data_[index]; }

private:
    const T *data_ = nullptr;
    std::size_t size_ = 0;
};

/* ==== Engines ==== */

/** rrpc_engine_options with its defaults. A path in it is the caller's and outlives the opening. */
struct engine_options : rrpc_engine_options {
    engine_options() : rrpc_engine_options{}
    {
        detail::check(rrpc_engine_options_init(this, sizeof(rrpc_engine_options)));
    }
};

struct sequence_options;

/** The most cache that an answer takes. */
struct cache_peak {
    /** The most entries (tokens) that a layer holds at any moment. */
    std::uint64_t entries;
    /** The most bytes of the cache. */
    std::uint64_t bytes;
};

/** An open model. */
class engine {
public:
    /** Opens a model folder, as rrpc_engine_open. */
    explicit engine(std::string_view model, const engine_options &options = engine_options())
    {
        if (detail::has_nul(model))
            detail::raise(RRPC_ERROR_INVALID_ARGUMENT, "model: expected a path, found a NUL character in it");
        rrpc_engine *opened = nullptr;
        detail::check(rrpc_engine_open(std::string(model).c_str(), &options, &opened));
        handle_.reset(opened);
    }
    /** The same for a path that ends at its NUL. */
    static expected<engine> try_open(const char *model, const rrpc_engine_options &options = engine_options())
    {
        rrpc_engine *opened = nullptr;
        if (rrpc_error *found = rrpc_engine_open(model, &options, &opened)) return failure(found);
        return adopt(opened);
    }

    /** Takes over a handle from C. */
    static engine adopt(rrpc_engine *handle) noexcept { return engine(handle, 0); }
    /** The handle, for calls in C. It stays this object's. */
    rrpc_engine *get() const noexcept { return handle_.get(); }
    /** Gives the handle away; the caller frees it. */
    rrpc_engine *release() noexcept { return handle_.release(); }

    /** What the engine is and how much of its budget is in use. */
    rrpc_engine_info info() const
    {
        rrpc_engine_info info{};
        info.struct_size = sizeof info;
        detail::check(rrpc_engine_get_info(get(), &info));
        return info;
    }

    /** Counters and the budget. */
    rrpc_metrics metrics() const
    {
        rrpc_metrics metrics{};
        metrics.struct_size = sizeof metrics;
        detail::check(rrpc_engine_get_metrics(get(), &metrics));
        return metrics;
    }
    /** The same in Prometheus' text exposition format. */
    std::string metrics_text() const
    {
        return detail::copied_text([this](auto... out) { return rrpc_engine_metrics_text(get(), out...); });
    }

    /** Gives the memory of free cache blocks back to the system, at once: the bytes; see rrpc_engine_trim. */
    std::uint64_t trim() const
    {
        std::uint64_t bytes = 0;
        detail::check(rrpc_engine_trim(get(), &bytes));
        return bytes;
    }

    /** The tokens that end an answer. */
    std::vector<std::uint32_t> stop_tokens() const
    {
        return detail::copied<std::vector<std::uint32_t>>([this](auto... out) {
            return rrpc_engine_stop_tokens(get(), out...);
        });
    }

    /** The token ids of a text; `mode` is one of RRPC_TOKENIZE_. */
    std::vector<std::uint32_t> tokenize(std::string_view text, std::uint32_t mode = RRPC_TOKENIZE_PLAIN) const
    {
        const char *data = text.empty() ? "" : text.data();
        return detail::copied<std::vector<std::uint32_t>>([&](auto... out) {
            return rrpc_tokenize(get(), data, text.size(), mode, out...);
        });
    }

    /** The text of token ids. */
    std::string detokenize(view<std::uint32_t> tokens, bool skip_special = false) const
    {
        const std::uint32_t none = 0;
        const std::uint32_t *data = tokens.empty() ? &none : tokens.data();
        return detail::copied<std::string>([&](auto... out) {
            return rrpc_detokenize(get(), data, tokens.size(), skip_special ? 1 : 0, out...);
        });
    }

    /** The most cache that an answer of `new_tokens` to a text of `prompt_tokens` takes: exact. */
    cache_peak peak_cache_bytes(const sequence_options &options, std::uint64_t prompt_tokens,
                                std::uint64_t new_tokens) const;

private:
    engine(rrpc_engine *handle, int) noexcept : handle_(handle) {}

    std::unique_ptr<rrpc_engine, detail::deleter> handle_;
};

} // namespace reasoning_rpc

#endif

/*
 * reasoning_rpc/expected.hpp: results without exceptions, and where errors become exceptions. Part of
 * reasoning_rpc.hpp, which includes it.
 */

#ifndef REASONING_RPC_EXPECTED_HPP
#define REASONING_RPC_EXPECTED_HPP

#include <reasoning_rpc.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace reasoning_rpc {

/** What went wrong: code() is one of RRPC_ERROR_, what() the message. */
class error : public std::runtime_error {
public:
    error(std::int32_t code, const char *message) : std::runtime_error(message), code_(code) {}
    std::int32_t code() const noexcept { return code_; }

private:
    std::int32_t code_;
};

namespace detail {

/* Without exceptions (-fno-exceptions), what would throw ends the program, as std::expected does. */
[[noreturn]] inline void raise(std::int32_t code, const char *message)
{
#if defined(__cpp_exceptions)
    throw error(code, message);
#else
    static_cast<void>(code);
    static_cast<void>(message);
    std::terminate();
#endif
}

struct error_deleter {
    void operator()(rrpc_error *error) const noexcept { rrpc_error_free(error); }
};

/* Where C errors become exceptions, and are freed. */
inline void check(rrpc_error *found)
{
    if (found == nullptr) return;
    const std::unique_ptr<rrpc_error, error_deleter> owned(found);
    raise(rrpc_error_code(found), rrpc_error_message(found));
}

} // namespace detail

/** An error that is a value: move-only, freed when destroyed. */
class failure {
public:
    /** Takes over an error from C, which is not NULL. */
    explicit failure(rrpc_error *found) noexcept : owned_(found) {}
    /** One that no C function found; `message` outlives it. */
    failure(std::int32_t code, const char *message) noexcept : code_(code), message_(message) {}
    /** One of RRPC_ERROR_. */
    std::int32_t code() const noexcept { return message_ ? code_ : rrpc_error_code(owned_.get()); }
    /** Valid as long as this object. */
    const char *what() const noexcept { return message_ ? message_ : rrpc_error_message(owned_.get()); }

private:
    std::unique_ptr<rrpc_error, detail::error_deleter> owned_;
    std::int32_t code_ = RRPC_OK;
    const char *message_ = nullptr;
};

/**
 * A value, or why there is none: what the functions named try_ return, which throw nothing but std::bad_alloc.
 * A subset of C++23's std::expected. `error()` is for a result without a value, `*` and `->` for one with.
 */
template <class T>
class [[nodiscard]] expected {
public:
    expected(T value) : held_(std::in_place_index<0>, std::move(value)) {}
    expected(failure why) noexcept : held_(std::in_place_index<1>, std::move(why)) {}

    bool has_value() const noexcept { return held_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }
    T &operator*() & noexcept { return *std::get_if<0>(&held_); }
    const T &operator*() const & noexcept { return *std::get_if<0>(&held_); }
    T &&operator*() && noexcept { return std::move(*std::get_if<0>(&held_)); }
    T *operator->() noexcept { return std::get_if<0>(&held_); }
    const T *operator->() const noexcept { return std::get_if<0>(&held_); }
    const failure &error() const noexcept { return *std::get_if<1>(&held_); }
    /** The value; without one, throws (and without exceptions ends the program). */
    T value() &&
    {
        if (!has_value()) detail::raise(error().code(), error().what());
        return std::move(**this);
    }

private:
    std::variant<T, failure> held_;
};

template <>
class [[nodiscard]] expected<void> {
public:
    expected() noexcept : why_(nullptr) {}
    /** NULL is success. Takes over an error from C. */
    explicit expected(rrpc_error *found) noexcept : why_(found), failed_(found != nullptr) {}
    expected(failure why) noexcept : why_(std::move(why)), failed_(true) {}

    bool has_value() const noexcept { return !failed_; }
    explicit operator bool() const noexcept { return has_value(); }
    const failure &error() const noexcept { return why_; }
    void value() &&
    {
        if (failed_) detail::raise(why_.code(), why_.what());
    }

private:
    failure why_;
    bool failed_ = false;
};

} // namespace reasoning_rpc

#endif

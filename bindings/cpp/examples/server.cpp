/*
 * An HTTP service over reasoning_rpc.hpp: answers are streamed as server-sent events.
 *
 *     server MODEL_FOLDER [--host 127.0.0.1] [--port 8080] [--answers 8] [--budget BYTES] [--threads N]
 *
 *     POST /generate  {"prompt": TEXT or "messages": [{"role": ..., "content": ...}], and what else `read` reads}
 *                     data: {"text": ...} for each piece, then event: end (why, and figures) or event: error
 *     GET /health     figures of the service
 *     GET /metrics    figures of the engine, for Prometheus
 *
 * Port 0 takes a free one; the first line of output names it. A request is admitted with the cache of its whole
 * answer promised, or refused with 503: no answer breaks off for want of memory. A client that leaves ends its
 * answer within one token. SIGTERM and SIGINT end the answers under way before their next tokens, then the
 * program, half a minute later at most if a client does not read. There is no TLS, no authentication and no limit
 * on waiting connections: a proxy in front has these.
 *
 *     scripts/fetch-cpp-httplib
 *     c++ -std=c++17 -DCPPHTTPLIB_OPENSSL_SUPPORT -isystem third_party/debian/usr/include \
 *         -isystem third_party/debian/usr/include/x86_64-linux-gnu bindings/cpp/examples/server.cpp -o server \
 *         -Lthird_party/debian/usr/lib/x86_64-linux-gnu -lcpp-httplib \
 *         $(pkg-config --cflags --libs reasoning_rpc) -pthread
 *
 *     LD_LIBRARY_PATH=third_party/debian/usr/lib/x86_64-linux-gnu ./server MODEL_FOLDER
 *
 * CPPHTTPLIB_OPENSSL_SUPPORT is what Debian's cpp-httplib was built with; its structs are smaller without it.
 */
#include <httplib.h>
#include <nlohmann/json.hpp>
#include <reasoning_rpc.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <thread>

namespace rrpc = reasoning_rpc;
using nlohmann::json;

namespace {

constexpr std::size_t max_body_bytes = std::size_t{1} << 20;
/* A client that reads nothing for so long has left. */
constexpr time_t patience_seconds = 30;
/* Threads beside those of the answers, so that /health and refusals never wait for one. */
constexpr std::size_t spare_threads = 4;

struct options {
    std::string model, host = "127.0.0.1";
    int port = 8080;
    std::uint64_t answers = 8;
    rrpc::engine_options engine;
};

/* What cannot be served: an HTTP status, a word for programs and a sentence for people. */
struct refusal {
    int status;
    const char *code;
    std::string message;
    /* The same request may be served in a while. */
    bool later = false;
};

refusal bad(std::string message) { return {400, "bad_request", std::move(message)}; }

refusal refusal_of(const rrpc::error &error)
{
    switch (error.code()) {
    case RRPC_ERROR_INVALID_ARGUMENT:
    case RRPC_ERROR_TEMPLATE:
    case RRPC_ERROR_TEXT: return bad(error.what());
    case RRPC_ERROR_CONTEXT: return {400, "context", error.what()};
    case RRPC_ERROR_BUDGET: return {503, "budget", error.what()};
    default: return {500, "internal", error.what()};
    }
}

/* A body's last resort is U+FFFD, never an exception. */
std::string written(const json &value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

json body_of(const refusal &why) { return {{"error", {{"code", why.code}, {"message", why.message}}}}; }

const char *name_of_stop(std::uint32_t reason)
{
    switch (reason) {
    case RRPC_STOP_EOS: return "eos";
    case RRPC_STOP_STRING: return "stop";
    case RRPC_STOP_LENGTH: return "length";
    case RRPC_STOP_CONTEXT: return "context";
    case RRPC_STOP_CANCELLED: return "cancelled";
    default: return "other";
    }
}

/* ==== Requests ==== */

/* Numbers, in the range of where they go; what they may mean is the library's to say. */
template <class Number>
void read_number(const json &value, const std::string &name, Number &out)
{
    if constexpr (std::is_floating_point_v<Number>) {
        if (!value.is_number()) throw bad(name + ": expected a number, found " + value.type_name());
        out = value.get<Number>();
    } else {
        constexpr std::uint64_t most = std::numeric_limits<Number>::max();
        if (!value.is_number_unsigned() || value.get<std::uint64_t>() > most)
            throw bad(name + ": expected a whole number from 0 to " + std::to_string(most) + ", found " + written(value));
        out = value.get<Number>();
    }
}

const std::string &read_string(const json &value, const std::string &name)
{
    if (!value.is_string()) throw bad(name + ": expected a string, found " + value.type_name());
    return value.get_ref<const std::string &>();
}

std::uint32_t read_flag(const json &value, const std::string &name)
{
    if (!value.is_boolean()) throw bad(name + ": expected true or false, found " + value.type_name());
    return value.get<bool>() ? 1 : 0;
}

std::uint32_t read_choice(const json &value, const std::string &name, std::initializer_list<const char *> choices)
{
    const std::string &found = read_string(value, name);
    std::string expected;
    std::uint32_t index = 0; // the constants of each choice count from 0
    for (const char *choice : choices) {
        if (found == choice) return index;
        expected += (index++ ? ", " : "") + std::string(choice);
    }
    throw bad(name + ": expected one of " + expected + ", found " + found);
}

/* Fills the options and appends the text. `body` is what the messages' texts lie in. */
rrpc::sequence read(const rrpc::engine &engine, const json &body, rrpc::sequence_options &sampling,
                    rrpc::generate_options &generating)
{
    if (!body.is_object()) throw bad("the body: expected a JSON object, found " + std::string(body.type_name()));
    if (body.contains("prompt") == body.contains("messages")) throw bad("expected either prompt or messages");
    for (const auto &[name, value] : body.items()) {
        if (name == "prompt" || name == "messages") continue;
        if (name == "max_tokens") read_number(value, name, generating.max_tokens);
        else if (name == "ignore_eos") generating.ignore_eos = read_flag(value, name);
        else if (name == "seed") read_number(value, name, sampling.seed);
        else if (name == "temperature") read_number(value, name, sampling.temperature);
        else if (name == "top_p") read_number(value, name, sampling.top_p);
        else if (name == "min_p") read_number(value, name, sampling.min_p);
        else if (name == "top_k") read_number(value, name, sampling.top_k);
        else if (name == "repetition_penalty") read_number(value, name, sampling.repetition_penalty);
        else if (name == "policy") sampling.policy = read_choice(value, name, {"none", "rpc"});
        else if (name == "interval") read_number(value, name, sampling.interval);
        else if (name == "window") read_number(value, name, sampling.window);
        else if (name == "ratio") read_number(value, name, sampling.ratio);
        else if (name == "entries") read_number(value, name, sampling.budget_entries);
        else if (name == "bytes") read_number(value, name, sampling.budget_bytes);
        else if (name == "aggregation") sampling.aggregation = read_choice(value, name, {"layer", "kv_head"});
        else if (name == "pooling") sampling.pooling = read_choice(value, name, {"average", "max"});
        else if (name == "kernel") read_number(value, name, sampling.kernel);
        else if (name == "stop" && value.is_array())
            for (const json &one : value) generating.stop_strings.push_back(read_string(one, "stop"));
        else if (name == "stop") generating.stop_strings = {read_string(value, name)};
        else throw bad("unknown field " + name);
    }
    rrpc::sequence sequence(engine, sampling);
    if (body.contains("prompt")) {
        sequence.append_text(read_string(body["prompt"], "prompt"));
    } else {
        const json &conversation = body["messages"];
        if (!conversation.is_array()) throw bad("messages: expected an array");
        std::vector<rrpc::message> messages;
        for (const json &one : conversation) {
            if (!one.is_object() || !one.contains("role") || !one.contains("content"))
                throw bad("messages: expected objects with role and content");
            messages.push_back({read_string(one["role"], "role"), read_string(one["content"], "content")});
        }
        sequence.append_chat(messages);
    }
    return sequence;
}

/* ==== The service ==== */

class service {
public:
    explicit service(const options &chosen) : engine_(chosen.model, chosen.engine), most_(chosen.answers) {}

    void stop() noexcept { stopping_ = true; }

    void generate(const httplib::Request &request, httplib::Response &response)
    {
        auto answer = std::make_shared<answer_under_way>(*this);
        if (answers_ > most_) throw refusal{503, "busy", "all " + std::to_string(most_) + " answers are under way", true};
        const json body = json::parse(request.body);
        rrpc::sequence_options sampling(engine_);
        rrpc::generate_options generating;
        answer->sequence.emplace(read(engine_, body, sampling, generating));
        answer->prompt = answer->sequence->pending();
        // Before the status is sent: what is wrong with the request, and the cache of the whole answer.
        try {
            answer->sequence->start(generating);
        } catch (const rrpc::error &error) {
            refusal why = refusal_of(error);
            const rrpc_engine_info info = engine_.info();
            const std::uint64_t tokens = std::min<std::uint64_t>(generating.max_tokens, info.context - answer->prompt);
            why.later = error.code() == RRPC_ERROR_BUDGET &&
                        engine_.peak_cache_bytes(sampling, answer->prompt, tokens).bytes <= info.budget_bytes;
            throw why;
        }
        response.set_header("Cache-Control", "no-store");
        response.set_chunked_content_provider("text/event-stream", [answer](std::size_t, httplib::DataSink &sink) {
            answer->write(sink);
            if (answer->heard) sink.done(); // a write too, which would wait once more
            return answer->heard;
        });
    }

    json health() const
    {
        const rrpc_engine_info info = engine_.info();
        return {{"status", stopping_ ? "stopping" : "ok"}, {"answers", answers_.load()},
                {"cancelled", cancelled_.load()}, {"generated_tokens", generated_tokens_.load()},
                {"budget_bytes", info.budget_bytes}, {"budget_used_bytes", info.budget_used_bytes}};
    }

    std::string metrics() const { return engine_.metrics_text(); }

private:
    /* Its destruction, when the response is gone, frees the cache. */
    struct answer_under_way {
        service &owner;
        std::optional<rrpc::sequence> sequence;
        std::uint64_t prompt = 0;
        bool heard = true;

        explicit answer_under_way(service &of) : owner(of) { ++owner.answers_; }
        answer_under_way(const answer_under_way &) = delete;
        answer_under_way &operator=(const answer_under_way &) = delete;
        ~answer_under_way()
        {
            sequence.reset();
            --owner.answers_; // last, so that no answers means no cache
        }

        /* False, from then on and at once, if the client has left. */
        bool send(httplib::DataSink &sink, const std::string &event)
        {
            // Writing tells that a client has left one write late; is_writable looks at the socket.
            heard = heard && sink.write(event.data(), event.size()) && sink.is_writable();
            return heard;
        }

        void write(httplib::DataSink &sink)
        try {
            std::uint64_t tokens = 0;
            std::uint32_t reason = RRPC_STOP_CANCELLED;
            while (heard && !owner.stopping_) {
                const rrpc::event event = sequence->next();
                if (event.kind == RRPC_EVENT_TOKEN) ++tokens, ++owner.generated_tokens_;
                // A comment keeps the connection awake where there is no text.
                if (event.kind != RRPC_EVENT_END || !event.text.empty())
                    send(sink, event.text.empty() ? ":\n\n" : piece(event.text));
                if (event.kind != RRPC_EVENT_END) continue;
                reason = event.stop_reason;
                break;
            }
            sequence->stop();
            if (reason == RRPC_STOP_CANCELLED) ++owner.cancelled_;
            const rrpc_sequence_stats stats = sequence->stats();
            send(sink, "event: end\ndata: " +
                           written({{"stop_reason", name_of_stop(reason)}, {"tokens", tokens}, {"prompt_tokens", prompt},
                                    {"compressions", stats.compressions}, {"prefill_seconds", stats.prefill_seconds},
                                    {"decode_seconds", stats.decode_seconds},
                                    {"cache_peak_bytes", stats.cache_peak_bytes}}) + "\n\n");
        } catch (const std::exception &error) {
            const auto *known = dynamic_cast<const rrpc::error *>(&error);
            const refusal why = known ? refusal_of(*known) : refusal{500, "internal", error.what()};
            send(sink, "event: error\ndata: " + written(body_of(why)) + "\n\n");
        }

        static std::string piece(std::string_view text) { return "data: " + written({{"text", text}}) + "\n\n"; }
    };

    rrpc::engine engine_;
    const std::uint64_t most_;
    std::atomic<std::uint64_t> answers_{0}, cancelled_{0}, generated_tokens_{0};
    std::atomic<bool> stopping_{false};
};

void reply(httplib::Response &response, const json &body) { response.set_content(written(body), "application/json"); }

void refuse(httplib::Response &response, const refusal &why)
{
    response.status = why.status;
    if (why.later) response.set_header("Retry-After", "1");
    reply(response, body_of(why));
}

void add_routes(httplib::Server &server, service &service)
{
    server.Post("/generate", [&](const httplib::Request &request, httplib::Response &response) {
        try {
            service.generate(request, response);
        } catch (const refusal &why) {
            refuse(response, why);
        } catch (const rrpc::error &error) {
            refuse(response, refusal_of(error));
        } catch (const json::exception &error) {
            refuse(response, bad(error.what()));
        } catch (const std::exception &error) {
            refuse(response, {500, "internal", error.what()});
        }
    });
    server.Get("/health", [&](const httplib::Request &, httplib::Response &response) { reply(response, service.health()); });
    server.Get("/metrics", [&](const httplib::Request &, httplib::Response &response) {
        response.set_content(service.metrics(), "text/plain; version=0.0.4");
    });
    // What the HTTP library refuses by itself: no such path, a body that is too large, a broken request.
    server.set_error_handler([](const httplib::Request &, httplib::Response &response) {
        if (!response.body.empty()) return;
        const char *code = response.status == 413 ? "too_large" : response.status == 404 ? "not_found" : "bad_request";
        reply(response, body_of({response.status, code, "HTTP status " + std::to_string(response.status)}));
    });
}

/* ==== The program ==== */

options read_arguments(int argc, char **argv)
{
    options chosen;
    const auto number = [](const std::string &name, const char *text, std::uint64_t most) {
        std::size_t used = 0;
        std::uint64_t value = 0;
        try {
            value = std::stoull(text, &used);
        } catch (const std::exception &) {
        }
        if (used == 0 || text[used] != '\0' || text[0] == '-' || value > most)
            throw std::invalid_argument(name + ": expected a number up to " + std::to_string(most) + ", found " + text);
        return value;
    };
    for (int index = 1; index < argc; ++index) {
        const std::string name = argv[index];
        if (name.rfind("--", 0) != 0 && chosen.model.empty()) {
            chosen.model = name;
            continue;
        }
        const char *value = index + 1 < argc ? argv[++index] : "";
        if (name == "--host") chosen.host = value;
        else if (name == "--port") chosen.port = int(number(name, value, 65535));
        else if (name == "--answers") chosen.answers = number(name, value, 1024);
        else if (name == "--budget") chosen.engine.budget_bytes = number(name, value, RRPC_BUDGET_DEFAULT);
        else if (name == "--threads") chosen.engine.threads = std::uint32_t(number(name, value, 1024));
        else throw std::invalid_argument("unknown argument " + name);
    }
    if (chosen.model.empty()) throw std::invalid_argument("expected a model folder");
    return chosen;
}

} // namespace

int main(int argc, char **argv)
try {
    const options chosen = read_arguments(argc, argv);
    // Before there are other threads, which inherit it: the signals are for one thread, which waits for them.
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);

    service service(chosen);
    httplib::Server server;
    server.new_task_queue = [&] { return new httplib::ThreadPool(chosen.answers + spare_threads); };
    server.set_payload_max_length(max_body_bytes);
    server.set_write_timeout(patience_seconds);
    // A client that reads slowly slows its answer down, rather than have it pile up in the kernel.
    server.set_socket_options([](socket_t socket) {
        const int one = 1, bytes = 4096;
        setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    });
    server.set_keep_alive_max_count(1); // an idle connection would hold a thread
    server.set_tcp_nodelay(true);
    add_routes(server, service);
    const int port = chosen.port == 0 ? server.bind_to_any_port(chosen.host)
                                      : (server.bind_to_port(chosen.host, chosen.port) ? chosen.port : -1);
    if (port < 0) throw std::runtime_error("cannot listen on " + chosen.host + ":" + std::to_string(chosen.port));
    std::cout << "listening on " << chosen.host << ":" << port << std::endl;

    std::atomic<bool> ended{false};
    std::thread stopper([&] {
        int signal = 0;
        sigwait(&signals, &signal);
        service.stop();
        // Stopping a server that does not listen yet does nothing.
        while (!ended && !server.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        server.stop();
    });
    const bool served = server.listen_after_bind(); // until stop, and the answers under way are through
    ended = true;
    pthread_kill(stopper.native_handle(), SIGTERM);
    stopper.join();
    return served ? 0 : 1;
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}

// The consumer in C++17. Usage: program MODEL_FOLDER. Prints the tokens of a greedy answer.
#include <iostream>
#include <reasoning_rpc.hpp>

int main(int argc, char **argv)
try {
    if (argc != 2) return 2;
    if (rrpc_abi_version() != RRPC_ABI_VERSION || rrpc_version() != std::string_view(RRPC_VERSION)) return 3;
    reasoning_rpc::engine engine(argv[1]);
    reasoning_rpc::sequence_options options(engine);
    options.temperature = 0;
    options.repetition_penalty = 1;
    reasoning_rpc::sequence sequence(engine, options);
    sequence.append_tokens({63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8});
    reasoning_rpc::generate_options generate;
    generate.max_tokens = 8;
    std::cout << "tokens:";
    sequence.generate(generate, [](const reasoning_rpc::event &event) {
        if (event.kind == RRPC_EVENT_TOKEN) std::cout << ' ' << event.id;
    });
    std::cout << '\n';
    return 0;
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}

/* A second translation unit with the header. */
#include <reasoning_rpc.hpp>

reasoning_rpc::generate_result answer(reasoning_rpc::sequence &sequence, std::uint64_t max_tokens);

reasoning_rpc::generate_result answer(reasoning_rpc::sequence &sequence, std::uint64_t max_tokens)
{
    reasoning_rpc::generate_options options;
    options.max_tokens = max_tokens;
    return sequence.generate(options);
}

/* Checks of the test programs, counted; one that fails is printed. tests/cpp/run reads the counts of their last line. */
#ifndef TESTS_CPP_CHECK_HPP
#define TESTS_CPP_CHECK_HPP

#include <cstdio>

static int passed, failed;

static bool check(bool condition, const char *what, const char *file, int line)
{
    if (!condition) std::printf("%s:%d: %s\n", file, line, what);
    ++(condition ? passed : failed);
    return condition;
}

#define CHECK(...) check((__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

#endif

// The same program through a C++ compiler and its linker; the C++ header must be there and compile beside it.
#include "consumer.c"
#if __has_include(<nearfile.hpp>)
#include <nearfile.hpp>
#endif

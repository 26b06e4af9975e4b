// The same program through a C++ compiler and its linker.
#include "adapters.c"

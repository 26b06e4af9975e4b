// What the contenders of a benchmark in C share: the parameters of a case, the far file with its counts, and how a contender is
// opened and read. The runner (scripts/bench) starts one process a contender and lets them run one after the other, round by round.
#ifndef SIDE_H
#define SIDE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct side {
  const char *contender, *mode;  // mode: warm, cold
  const char *file;              // the far file, local
  const char *url;               // the same over HTTP, or NULL
  const char *dir;               // the contender's own directory
  const char *pattern;           // random, sequential, stream (at the position)
  uint64_t size, page, op, count, seed, max_fetch, limit, connections;
  unsigned delay_us, threads, processes;
} side;

// What the far file was asked, over all workers.
typedef struct counts {
  _Atomic uint64_t requests, bytes;
} counts;

typedef struct contender {
  const char *name;
  bool per_thread;  // a handle is used by one thread only
  void *(*open)(const side *);
  int64_t (*pread)(void *handle, void *buf, size_t len, uint64_t offset);
  int64_t (*read)(void *handle, void *buf, size_t len);  // at the position; NULL: pread
  void (*whole)(const side *, void *handle);             // does all of a round's work itself; NULL: the list of reads
  void (*close)(void *handle);
  uint64_t (*extra)(const side *, void *handle);         // a further figure of a round, "extra" in its result
} contender;

extern counts *far_counts;
extern const contender plain_contenders[], our_contenders[], zip_contenders[], peer_contenders[];

// Ends the process with a sentence, which becomes the contender's column.
_Noreturn void side_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

// The far file as every source here reads it: a request sleeps, then reads the local file. Returns the bytes read.
int64_t far_read(int fd, unsigned delay_us, void *buf, size_t len, uint64_t offset);

uint64_t side_random(uint64_t *state);
char *side_path(const side *, const char *name);

#endif

// The thread pool: every index exactly once, from many callers at once, from inside itself, and after fork().
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"

namespace {

struct Counter {
  std::vector<std::atomic<int>> hits;
  int64_t grain;
  int depth;
  explicit Counter(size_t size, int64_t grain_, int depth_ = 0) : hits(size), grain(grain_), depth(depth_) {}
};

void count(void* data, int64_t begin, int64_t end) {
  Counter& counter = *static_cast<Counter*>(data);
  for (int64_t i = begin; i < end; ++i) {
    ++counter.hits[size_t(i)];
    if (counter.depth == 0) continue;
    Counter inner(50, 1);
    const ats_executor* pool = ats_thread_pool();
    pool->parallel_for(pool->context, 0, 50, 1, count, &inner);
    for (const auto& hit : inner.hits)
      if (hit != 1) ++counter.hits[size_t(i)];
  }
}

bool once_each(int64_t size, int64_t grain, int depth = 0) {
  Counter counter(size_t(size), grain, depth);
  const ats_executor* pool = ats_thread_pool();
  pool->parallel_for(pool->context, 0, size, grain, count, &counter);
  for (const auto& hit : counter.hits)
    if (hit != 1) return false;
  return true;
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 8, 0}) {
    CHECK_OK(ats_set_num_threads(threads));
    CHECK(ats_get_num_threads() == (threads ? threads : ats_get_num_threads()) && ats_get_num_threads() >= 1);
    for (const int64_t size : {0, 1, 2, 7, 1000, 100000})
      for (const int64_t grain : {1, 3, 1000}) CHECK(once_each(size, grain));
    CHECK(once_each(100, 1, 1));
  }
  CHECK(ats_set_num_threads(-1) == ATS_INVALID_ARGUMENT);
  CHECK(ats_set_num_threads(100000) == ATS_INVALID_ARGUMENT);

  CHECK_OK(ats_set_num_threads(4));
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 6; ++t)
    callers.emplace_back([&wrong, t] {
      for (int i = 0; i < 300; ++i) {
        wrong += !once_each(500, 1);
        if (t == 0 && i % 50 == 0) ats_set_num_threads(2 + i / 50 % 3);
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);

  CHECK(once_each(1000, 1));
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a child that waits for threads it does not have dies of this
      _exit(once_each(1000, 1) && once_each(1000, 1) ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  CHECK(once_each(1000, 1));
  return finish();
}

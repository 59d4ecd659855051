// The library's own thread pool, for callers outside a framework (the NumPy edge, C programs).
//
// One job at a time: threads take ranges of it from a counter. A caller that finds the pool busy, perhaps with a job
// of its own further up the stack, runs its job alone, so nothing can wait for itself. After fork() the child has no
// threads: it gets a fresh pool, and the old one, whose locks may be held by threads that no longer exist, is left
// alone.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core.h"

namespace ats {
namespace {

constexpr int kMaxThreads = 256;

struct Job {
  int64_t begin, end, step;
  ats_body body;
  void* data;
  std::atomic<int64_t> next;

  void work() {
    for (;;) {
      const int64_t first = next.fetch_add(step, std::memory_order_relaxed);
      if (first >= end) return;
      body(data, first, std::min(end, first + step));
    }
  }
};

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) {
      try {
        workers_.emplace_back([this] { serve(); });
      } catch (const std::system_error&) {
        break;  // no more threads to be had: fewer will do
      }
    }
  }

  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return int(workers_.size()) + 1; }

  // False when the pool is busy.
  bool run(Job& job) {
    if (taken_.test_and_set(std::memory_order_acquire)) return false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      ++generation_;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes up late finds nothing
    idle_.wait(lock, [this] { return active_ == 0; });
    taken_.clear(std::memory_order_release);
    return true;
  }

 private:
  void serve() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      Job* job = job_;
      if (job == nullptr) continue;
      ++active_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--active_ == 0) idle_.notify_all();
    }
  }

  std::atomic_flag taken_ = ATOMIC_FLAG_INIT;  // by the caller whose job runs
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  uint64_t generation_ = 0;
  int active_ = 0;
  bool stopping_ = false;
};

int default_threads() { return std::clamp(int(std::thread::hardware_concurrency()), 1, kMaxThreads); }

// Both are leaked on purpose: threads may still run while the process exits, and a forked child must not destroy a
// pool whose threads it does not have.
struct Registry {
  std::mutex mutex;
  int wanted = default_threads();
  std::shared_ptr<Pool> pool;
};
std::atomic<Registry*> registry{nullptr};

Registry& current() {
  static const bool installed = [] {
    registry = new Registry;
    pthread_atfork(nullptr, nullptr, [] {
      Registry* fresh = new Registry;
      fresh->wanted = registry.load()->wanted;
      registry = fresh;
    });
    return true;
  }();
  (void)installed;
  return *registry.load();
}

std::shared_ptr<Pool> pool() {
  Registry& here = current();
  const std::lock_guard<std::mutex> lock(here.mutex);
  if (!here.pool) here.pool = std::make_shared<Pool>(here.wanted);
  return here.pool;
}

void pool_parallel_for(void*, int64_t begin, int64_t end, int64_t grain, ats_body body, void* data) {
  const int64_t size = end - begin;
  if (size <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (size > grain) {
    try {
      const std::shared_ptr<Pool> threads = pool();
      // A few ranges a thread even out their lengths.
      const int64_t ranges = std::min(size / grain + (size % grain != 0), int64_t(threads->threads()) * 4);
      Job job{begin, end, size / ranges + (size % ranges != 0), body, data, {begin}};
      if (threads->threads() > 1 && threads->run(job)) return;
    } catch (...) {
      // Without a pool the caller does the work.
    }
  }
  body(data, begin, end);
}

const ats_executor pool_executor{nullptr, pool_parallel_for, nullptr};

}  // namespace
}  // namespace ats

const ats_executor* ats_thread_pool(void) noexcept { return &ats::pool_executor; }

int ats_get_num_threads(void) noexcept {
  ats::Registry& here = ats::current();
  const std::lock_guard<std::mutex> lock(here.mutex);
  return here.wanted;
}

int ats_set_num_threads(int threads) noexcept {
  return ats::guard([&] {
    if (threads < 0 || threads > ats::kMaxThreads)
      ats::fail("set_num_threads: threads must lie between 0 (one a core) and %d, got %d", ats::kMaxThreads, threads);
    ats::Registry& here = ats::current();
    std::shared_ptr<ats::Pool> old;  // destroyed after the lock, when its last job is done
    const std::lock_guard<std::mutex> lock(here.mutex);
    here.wanted = threads == 0 ? ats::default_threads() : threads;
    old.swap(here.pool);
  });
}

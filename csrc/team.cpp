#include "team.h"

#include <algorithm>
#include <fstream>
#include <string>

#ifdef __linux__
#include <sched.h>
#include <unistd.h>
#endif

namespace bitwright {
namespace {

constexpr int kSpins = 2000;  // about 20 microseconds

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins, and gives the core away from time to time once that has become long: another process may need it.
template <class Ready> void spin_until(Ready ready) {
  for (int i = 0; !ready(); i++) {
    pause();
    if (i >= kSpins) std::this_thread::yield();
  }
}

}  // namespace

int allowed_cores() {
  int cores = int(std::thread::hardware_concurrency());
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  std::ifstream quota("/sys/fs/cgroup/cpu.max");
  std::string limit;
  double period = 0;
  if (quota >> limit >> period && limit != "max" && period > 0)
    cores = std::min(cores, int(std::stod(limit) / period + 0.5));
#endif
  return std::max(cores, 1);
}

Team& Team::shared() {
  static Team* team = nullptr;
  static int owner = 0;
  static std::mutex guard;
  std::lock_guard lock(guard);
#ifdef __linux__
  const int process = int(getpid());
#else
  const int process = 1;
#endif
  // A forked child has no copies of the threads: the parent's team is left alone and a new one made.
  if (!team || owner != process) team = new Team, owner = process;
  return *team;
}

void Team::run(int workers, const std::function<void(int, int)>& work) {
  std::unique_lock lock(busy_, std::try_to_lock);
  if (workers <= 1 || !lock) return work(0, 1);
  grow(workers - 1);
  work_ = &work, workers_ = workers;
  running_.store(int(helpers_.size()), std::memory_order_relaxed);
  task_.fetch_add(1, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst)) {
    std::lock_guard sleeping(sleep_);
    wake_.notify_all();
  }
  work(0, workers);
  spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

void Team::barrier(int workers) {
  if (workers == 1) return;
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

void Team::grow(int helpers) {
  while (int(helpers_.size()) < helpers) {
    const int worker = int(helpers_.size()) + 1;
    helpers_.emplace_back([this, worker, seen = task_.load()] {
      unsigned last = seen;
      while (true) {
        for (int i = 0; i < kSpins && task_.load(std::memory_order_acquire) == last; i++) pause();
        if (task_.load(std::memory_order_acquire) == last) {
          std::unique_lock lock(sleep_);
          asleep_.fetch_add(1, std::memory_order_seq_cst);
          wake_.wait(lock, [&] { return stop_ || task_.load(std::memory_order_seq_cst) != last; });
          asleep_.fetch_sub(1, std::memory_order_seq_cst);
          if (stop_) return;
        }
        last = task_.load(std::memory_order_acquire);
        help(worker);
      }
    });
  }
}

void Team::help(int worker) {
  if (worker < workers_) (*work_)(worker, workers_);
  running_.fetch_sub(1, std::memory_order_release);  // every helper answers every task, so none can run one twice
}

Team::~Team() {
  {
    std::lock_guard lock(sleep_);
    stop_ = true;
    task_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& t : helpers_) t.join();
}

}  // namespace bitwright

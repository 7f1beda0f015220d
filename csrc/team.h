// The process's worker threads. They spin for some microseconds after a task, because the next one usually follows at
// once, then sleep. The caller is worker 0.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace bitwright {

// Cores that this process may use: affinity mask and, on Linux, the quota of its control group.
int allowed_cores();

class Team {
 public:
  // The one team; made anew after a fork.
  static Team& shared();

  // Calls work(worker, workers) on up to `workers` threads and returns when all have finished. Where the team is busy with
  // another caller, the caller does everything alone, as worker 0 of 1.
  void run(int workers, const std::function<void(int, int)>& work);

  // Inside `run`: waits until all workers of the task have arrived.
  void barrier(int workers);

  ~Team();

 private:
  void grow(int helpers);
  void help(int worker);

  std::mutex busy_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> helpers_;
  const std::function<void(int, int)>* work_ = nullptr;
  int workers_ = 1;
  bool stop_ = false;
  alignas(128) std::atomic<unsigned> task_{0};
  alignas(128) std::atomic<int> running_{0};
  alignas(128) std::atomic<int> arrived_{0};
  alignas(128) std::atomic<unsigned> phase_{0};
  alignas(128) std::atomic<int> asleep_{0};
};

}  // namespace bitwright

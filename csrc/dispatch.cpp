#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace bitwright {
#define BITWRIGHT_LEVEL(name)     \
  namespace name {                \
  extern const Kernels kernels;   \
  }
BITWRIGHT_LEVEL(avx512)
BITWRIGHT_LEVEL(avxvnni)
BITWRIGHT_LEVEL(avx2)
BITWRIGHT_LEVEL(neon_i8mm)
BITWRIGHT_LEVEL(neon_dot)
BITWRIGHT_LEVEL(portable)

namespace {

struct Found {
  std::vector<const Kernels*> usable;
  std::vector<std::pair<std::string, std::string>> refused;

  void offer(const Kernels& kernels, bool supported, const char* needs) {
    if (supported) usable.push_back(&kernels);
    else refuse(kernels.name, std::string("this processor lacks ") + needs);
  }

  // Only levels that would have come before those in use are worth a word.
  void refuse(const char* name, const std::string& reason) {
    if (usable.empty()) refused.emplace_back(name, reason);
  }

  void offer_arm() {
#if defined(__aarch64__) && defined(__linux__)
    const bool dot = getauxval(AT_HWCAP) & HWCAP_ASIMDDP, i8mm = getauxval(AT_HWCAP2) & HWCAP2_I8MM;
#else
    const bool dot = false, i8mm = false;
#endif
#ifdef BITWRIGHT_NEON_I8MM
    offer(neon_i8mm::kernels, dot && i8mm, "i8mm, or its system does not say");
#endif
#ifdef BITWRIGHT_NEON_DOT
    offer(neon_dot::kernels, dot, "dot products, or its system does not say");
#endif
    (void)dot, (void)i8mm;
  }

  void offer_x86() {
#ifdef BITWRIGHT_AVX512
    offer(avx512::kernels,
          __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("gfni") &&
              __builtin_cpu_supports("f16c"),
          "AVX-512 VNNI, VBMI, VBMI2 or GFNI");
#else
    refuse("avx512-vnni", "the compiler of this build did not know it");
#endif
#ifdef BITWRIGHT_AVXVNNI
    offer(avxvnni::kernels, __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"),
          "AVX-VNNI");
#else
    refuse("avx-vnni", "the compiler of this build did not know it");
#endif
#ifdef BITWRIGHT_AVX2
    offer(avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"), "AVX2 or F16C");
#else
    refuse("avx2", "the compiler of this build did not know it");
#endif
  }

  Found() {
#ifdef __aarch64__
    offer_arm();
#else
    offer_x86();
#endif
    usable.push_back(&portable::kernels);
  }
};

const Found& found() {
  static const Found f;
  return f;
}

std::atomic<const Kernels*> current{nullptr};

}  // namespace

const std::vector<const Kernels*>& levels() { return found().usable; }
const std::vector<std::pair<std::string, std::string>>& refused_levels() { return found().refused; }

const Kernels& level() {
  const Kernels* k = current.load();
  return k ? *k : *levels().front();
}

void set_level(const std::string& name) {
  std::string known;
  for (const Kernels* k : levels()) {
    if (name == k->name) {
      current.store(k);
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(k->name);
  }
  throw std::invalid_argument("no instruction-set level " + name + " here; usable: " + known);
}

}  // namespace bitwright

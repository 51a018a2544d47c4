// Included before every file of a wheel for Linux on x86-64: has the linker of a newer system take what glibc 2.28 and
// GCC 8's libstdc++ have, too, so that the wheel is a manylinux_2_28 one. Code that GCC makes does not change.
// packaging/wheel.py passes it, and auditwheel says when a name is missing here.
#if defined(__cplusplus)
extern "C" {
#endif

// glibc 2.29 gave exp and pow new versions that do not set errno, glibc 2.34 moved pthread_once to libc.
__asm__(".symver exp,exp@GLIBC_2.2.5");
__asm__(".symver pow,pow@GLIBC_2.2.5");
__asm__(".symver pthread_once,pthread_once@GLIBC_2.2.5");

// Of std::condition_variable::wait GCC 12's library has a new version, which is not noexcept.
#define HASHGRID_WAIT "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE"
__asm__(".symver " HASHGRID_WAIT "," HASHGRID_WAIT "@GLIBCXX_3.4.11");

// Of glibc 2.32: whether std::shared_ptr may count without atomics. Never is right, if slower by nanoseconds.
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;

#if defined(__cplusplus)
}
#endif

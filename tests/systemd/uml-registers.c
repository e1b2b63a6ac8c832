/* LD_PRELOAD shim for user-mode Linux 6.1 on CPUs with AMX: it saves fewer extended registers than the
 * CPU has, and ptrace refuses to set a shorter register set. The missing registers are filled with their
 * current contents; the tile registers, unused in the guest, are marked as not in use.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define XSTATE 0x202         /* NT_X86_XSTATE */
#define PRESENT 512          /* offset of the bit mask of registers in use */
#define TILES (3ull << 17)

static char whole[65536] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(int, ...);
	va_list list;
	va_start(list, request);
	long pid = va_arg(list, long);
	void *kind = va_arg(list, void *), *data = va_arg(list, void *);
	va_end(list);
	if (!next)
		next = dlsym(RTLD_NEXT, "ptrace");
	if ((int)request == PTRACE_SETREGSET && (long)kind == XSTATE) {
		struct iovec *given = data, all = { whole, sizeof whole };
		long rc = syscall(SYS_ptrace, PTRACE_GETREGSET, pid, kind, &all);
		if (rc == 0 && all.iov_len > given->iov_len && given->iov_len > PRESENT + 8) {
			uint64_t present;
			memcpy(whole, given->iov_base, given->iov_len);
			memcpy(&present, whole + PRESENT, 8);
			present &= ~TILES;
			memcpy(whole + PRESENT, &present, 8);
			return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, kind, &all);
		}
	}
	return next(request, pid, kind, data);
}

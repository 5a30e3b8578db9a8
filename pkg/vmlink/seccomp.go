package vmlink

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (seccomp(2)); of an argument, its low half on
// a little-endian machine.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// rule allows a system call, if check is set only with arguments that pass.
type rule struct {
	number uint32
	check  *argument
}

// argument demands value of the bits in mask of argument index.
type argument struct {
	index       uint32
	mask, value uint32
}

// rules are what the Go runtime and the loop of a responder do, and no more: no
// new socket, no other file for writing, no new program or process, no code written
// at run time. The frequent ones come first.
func rules(pid, leases int) []rule {
	const anyBit = 0xffffffff
	return []rule{
		// Frames and control lines.
		{number: unix.SYS_READ},
		{number: unix.SYS_WRITE},
		{number: unix.SYS_EPOLL_PWAIT},
		{number: unix.SYS_ACCEPT4},
		{number: unix.SYS_PPOLL},
		{number: unix.SYS_CLOSE},
		{number: unix.SYS_EPOLL_CTL},
		{number: unix.SYS_GETSOCKNAME},
		{unix.SYS_IOCTL, &argument{1, anyBit, unix.SIOCGIFFLAGS}},

		// What is kept of the guest's leases, in the one file that is open for
		// writing; and the way to the agent, for a guest that is relayed.
		{unix.SYS_PWRITE64, &argument{0, anyBit, uint32(leases)}},
		{unix.SYS_FDATASYNC, &argument{0, anyBit, uint32(leases)}},
		{number: unix.SYS_SENDTO},

		// The binding (and the zone for the log's times): reading only.
		{unix.SYS_OPENAT, &argument{2, unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC, unix.O_RDONLY}},
		{number: unix.SYS_FSTAT},
		{number: unix.SYS_LSEEK},
		{unix.SYS_FCNTL, &argument{1, anyBit, unix.F_GETFL}},

		// The runtime: scheduler, memory, signals, clocks.
		{number: unix.SYS_FUTEX},
		{number: unix.SYS_NANOSLEEP},
		{number: unix.SYS_SCHED_YIELD},
		{number: unix.SYS_CLOCK_GETTIME},
		{number: unix.SYS_GETTIMEOFDAY},
		{number: unix.SYS_GETRANDOM},
		{number: unix.SYS_MADVISE},
		{unix.SYS_MMAP, &argument{2, unix.PROT_EXEC, 0}},
		{number: unix.SYS_MUNMAP},
		{unix.SYS_PRCTL, &argument{0, anyBit, unix.PR_SET_VMA}}, // names its mappings
		{unix.SYS_CLONE, &argument{0, unix.CLONE_THREAD, unix.CLONE_THREAD}},
		{number: unix.SYS_GETPID},
		{number: unix.SYS_GETTID},
		{unix.SYS_TGKILL, &argument{0, anyBit, uint32(pid)}},
		{number: unix.SYS_RT_SIGPROCMASK},
		{number: unix.SYS_RT_SIGACTION},
		{number: unix.SYS_RT_SIGRETURN},
		{number: unix.SYS_SIGALTSTACK},
		{number: unix.SYS_RESTART_SYSCALL},
		{number: unix.SYS_EXIT},
		{number: unix.SYS_EXIT_GROUP},
	}
}

// syscallFilter ends the process on anything that rules do not allow.
func syscallFilter(pid, leases int) []bpf.Instruction {
	kill, allow := bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		kill,
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
	}
	for _, r := range rules(pid, leases) {
		if r.check == nil {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.number, SkipTrue: 1}, allow)
			continue
		}
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.number, SkipTrue: 5},
			bpf.LoadAbsolute{Off: offArgs + 8*r.check.index, Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: r.check.mask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: r.check.value, SkipTrue: 1},
			kill,
			allow,
		)
	}
	return append(program, kill)
}

// restrictSyscalls sets no_new_privs, unless the process was started with it, and
// installs the filter, both on every thread. (A filter that is synchronised would hand no_new_privs on, but to set it
// on one thread first takes runtime.LockOSThread, which keeps a thread for ever.)
func restrictSyscalls(leases int) error {
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set == 0 {
		if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
			return fmt.Errorf("set no_new_privs: %w", errno)
		}
	}
	raw, err := bpf.Assemble(syscallFilter(os.Getpid(), leases))
	if err != nil {
		return fmt.Errorf("assemble the system call filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	other, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("install the system call filter: %w", errno)
	}
	if other != 0 {
		return fmt.Errorf("install the system call filter: thread %d has another one", other)
	}
	return nil
}

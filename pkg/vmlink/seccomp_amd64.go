package vmlink

import "golang.org/x/sys/unix"

// auditArch is this machine's number in struct seccomp_data.
const auditArch = unix.AUDIT_ARCH_X86_64

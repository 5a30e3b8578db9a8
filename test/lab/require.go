package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Missing says what the machine lacks to run a lab: nil, or an error that
// names the packages to install.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab makes namespaces and starts libvirtd: run this as root")
	}
	var lack []string
	for _, need := range []struct{ program, pkg string }{
		{"libvirtd", "libvirt-daemon-system"},
		{"virsh", "libvirt-clients"},
		{"qemu-system-x86_64", "qemu-system-x86"},
		{"busybox", "busybox-static"},
		{"dhcpcd", "dhcpcd-base"},
		{"ip", "iproute2"},
		{"nft", "nftables"},
		{"conntrack", "conntrack"},
		{"ping", "iputils-ping"},
		{"tcpdump", "tcpdump"},
		{"nsenter", "util-linux"},
		{"sysctl", "procps"},
	} {
		if _, err := exec.LookPath(need.program); err != nil {
			lack = append(lack, need.pkg)
		}
	}
	if _, _, err := guestKernel(); err != nil {
		lack = append(lack, "linux-image-cloud-amd64")
	}
	if len(lack) > 0 {
		return fmt.Errorf("a lab needs packages that are not installed. Fix: apt-get install --no-install-recommends %s", strings.Join(lack, " "))
	}
	return nil
}

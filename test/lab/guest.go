package lab

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

var (
	//go:embed guest/init
	guestInit []byte
	//go:embed guest/udhcpc.script
	guestDHCP []byte
	//go:embed guest/dhcpcd.conf
	guestDHCP6 []byte
	//go:embed guest/dhcpcd.note
	guestNote []byte
	//go:embed guest/router
	guestRouter []byte
	//go:embed guest/dhcpcd.router.conf
	guestRouterDHCP6 []byte
	//go:embed guest/dhcpcd.script
	guestRouterScript []byte
)

const (
	kernels       = "/boot/vmlinuz-*-cloud-amd64"
	initramfsPath = labDir + "/initramfs"
)

// guestModules are what the Debian cloud kernel needs for a virtio NIC on PCI
// and the power button, in the order of loading.
var guestModules = []string{
	"drivers/virtio/virtio_ring.ko",
	"drivers/virtio/virtio.ko",
	"drivers/virtio/virtio_pci_modern_dev.ko",
	"drivers/virtio/virtio_pci_legacy_dev.ko",
	"drivers/virtio/virtio_pci.ko",
	"net/core/failover.ko",
	"drivers/net/net_failover.ko",
	"drivers/net/virtio_net.ko",
	"drivers/acpi/button.ko",
	"drivers/input/evdev.ko",
}

// guestKernel is the newest of the host's cloud kernels.
func guestKernel() (image, version string, err error) {
	found, err := filepath.Glob(kernels)
	if err != nil || len(found) == 0 {
		return "", "", fmt.Errorf("find a kernel for guests: nothing matches %s", kernels)
	}
	sort.Strings(found)
	image = found[len(found)-1]
	return image, strings.TrimPrefix(filepath.Base(image), "vmlinuz-"), nil
}

// initramfs is the guests' root: busybox, a few modules, guest/init.
func initramfs() ([]byte, error) {
	_, version, err := guestKernel()
	if err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("make the guests' root: %w", err)
	}
	var w cpio
	for _, dir := range []string{"bin", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "lib/modules", "lib/modules/extra", "run", "tmp", "dev", "usr", "usr/sbin", "var", "var/lib", "var/lib/dhcpcd"} {
		w.dir(dir)
	}
	w.file("init", 0o755, guestInit)
	w.file("bin/busybox", 0o755, busybox)
	w.file("etc/udhcpc.script", 0o755, guestDHCP)
	w.file("etc/acpi/PWRF/00000080", 0o755, []byte("#!/bin/busybox sh\n/bin/busybox poweroff -f\n"))
	w.char("dev/console", 5, 1)
	w.file("etc/dhcpcd.conf", 0o644, guestDHCP6)
	w.file("etc/dhcpcd.note", 0o755, guestNote)
	w.file("etc/router", 0o755, guestRouter)
	w.file("etc/dhcpcd.router.conf", 0o644, guestRouterDHCP6)
	w.file("etc/dhcpcd.script", 0o755, guestRouterScript)
	w.file("etc/passwd", 0o644, []byte("root:x:0:0::/:/bin/sh\n"))
	if err := w.program("/usr/sbin/dhcpcd"); err != nil {
		return nil, fmt.Errorf("make the guests' root: %w", err)
	}
	var order strings.Builder
	for _, m := range guestModules {
		if err := w.module(version, m, "lib/modules/"); err != nil {
			return nil, err
		}
		order.WriteString(filepath.Base(m) + "\n")
	}
	w.file("lib/modules/order", 0o644, []byte(order.String()))
	if err := w.module(version, "drivers/net/veth.ko", "lib/modules/extra/"); err != nil {
		return nil, err
	}
	return w.bytes(), nil
}

// module adds a module of the kernel's to a folder.
func (c *cpio) module(version, path, to string) error {
	b, err := os.ReadFile(filepath.Join("/lib/modules", version, "kernel", path))
	if err != nil {
		return fmt.Errorf("make the guests' root: %w", err)
	}
	c.file(to+filepath.Base(path), 0o644, b)
	return nil
}

var libraryPath = regexp.MustCompile(`(?m)(/\S+) \(0x`)

// program adds a program with the shared libraries that it needs, each at its
// path on the host.
func (c *cpio) program(path string) error {
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("find the libraries of %s: %w", path, err)
	}
	files := []string{path}
	for _, m := range libraryPath.FindAllStringSubmatch(string(out), -1) {
		files = append(files, m[1])
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return fmt.Errorf("read a program of the host's: %w", err)
		}
		name := ""
		for _, dir := range strings.Split(strings.Trim(filepath.Dir(f), "/"), "/") {
			name = filepath.Join(name, dir)
			c.dir(name)
		}
		c.file(strings.TrimPrefix(f, "/"), 0o755, b)
	}
	return nil
}

// cpio writes the "newc" format of cpio(5), which the kernel unpacks.
type cpio struct {
	buf   bytes.Buffer
	inode int
}

const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
)

func (c *cpio) dir(name string) { c.entry(name, modeDir|0o755, 0, 0, nil) }

func (c *cpio) file(name string, perm int, data []byte) { c.entry(name, modeFile|perm, 0, 0, data) }

func (c *cpio) char(name string, major, minor int) { c.entry(name, modeChar|0o600, major, minor, nil) }

func (c *cpio) entry(name string, mode, major, minor int, data []byte) {
	c.inode++
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	c.pad()
	c.buf.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}

func (c *cpio) bytes() []byte {
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	return c.buf.Bytes()
}

package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/test/lab"
)

// handMadeHook makes by hand, for one fixed address, what slash32-hook makes
// from an annotation.
const handMadeHook = `#!/bin/sh
cat >/dev/null
echo "$*" >>/run/hooks
case $2 in
prepare)
	ip link add vm-plain type bridge mcast_snooping 0
	sysctl -qw net.ipv6.conf.vm-plain.addr_gen_mode=1 net.ipv4.ip_forward=1
	ip link set vm-plain up
	ip address add 198.51.100.1/24 dev vm-plain
	;;
release) ip link delete vm-plain ;;
esac
`

// makerHook, in the environment, makes this test binary the maker of a lab with
// that hook, which it never closes.
const makerHook = "LAB_TEST_MAKER_HOOK"

func TestMain(m *testing.M) {
	if hook := os.Getenv(makerHook); hook != "" {
		l, err := lab.Up(context.Background(), lab.Options{Hook: hook})
		fmt.Println(err)
		if err == nil {
			fmt.Println(l.HV.Path("/"))
			select {}
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func writeHook(t *testing.T) string {
	t.Helper()
	hook := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(hook, []byte(handMadeHook), 0o755); err != nil {
		t.Fatal(err)
	}
	return hook
}

// TestMakerKilled shows that a lab ends with the process that made it.
func TestMakerKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	maker := exec.CommandContext(ctx, os.Args[0])
	maker.Env = append(os.Environ(), makerHook+"="+writeHook(t))
	stdout, err := maker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := maker.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	if lines.Scan(); lines.Text() != "<nil>" {
		t.Fatal(lines.Text())
	}
	lines.Scan()
	root := lines.Text()
	if _, err := os.Stat(filepath.Join(root, "run/libvirtd.pid")); err != nil {
		t.Error(err)
	}
	if err := maker.Process.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = maker.Wait() // "signal: killed"
	if err := lab.Wait(ctx, func() error {
		if _, err := os.Stat(filepath.Dir(root)); err == nil {
			return fmt.Errorf("%s is still there", filepath.Dir(root))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestSideBySide shows that two labs do not see each other.
func TestSideBySide(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hook := writeHook(t)
	var labs [2]*lab.Lab
	for i := range labs {
		l, err := lab.Up(ctx, lab.Options{Hook: hook})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}()
		labs[i] = l
	}
	if err := labs[0].Define(ctx, lab.Domain{Name: "only-here", Cheap: true}); err != nil {
		t.Error(err)
	}
	for i, want := range []string{"only-here", ""} {
		got, err := labs[i].Virsh(ctx, "list", "--all", "--name")
		if err != nil || got != want {
			t.Errorf("lab %d has domains %q, want %q; error %v", i, got, want, err)
		}
	}
}

// TestLab shows that a lab by itself works: libvirtd calls a hook, a guest
// boots and reaches the internet, a restart of libvirtd reaches the hook, and
// everything goes again.
func TestLab(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	start := time.Now()
	l, err := lab.Up(ctx, lab.Options{Hook: writeHook(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Log(l.Tails(20))
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	t.Log("up after", time.Since(start))
	before, err := l.HV.KernelState(ctx)
	if err != nil {
		t.Fatal(err)
	}

	if err := l.Run(ctx, lab.Domain{Name: "plain"}); err != nil {
		t.Fatal(err)
	}
	t.Log("started after", time.Since(start))
	guest := l.Console("plain")
	out, err := guest.Run(ctx, "ip address add 198.51.100.7/24 dev eth0 && ip route add default via 198.51.100.1 && ip address show eth0")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "inet 198.51.100.7/24") {
		t.Errorf("the console printed %q", out)
	}
	t.Log("guest after", time.Since(start))
	if err := l.Inet.Ping(ctx, "198.51.100.7"); err != nil {
		t.Error(err)
	}
	t.Log("ping after", time.Since(start))
	if out, err := guest.Run(ctx, "echo out; false"); err == nil || out != "out\n" {
		t.Errorf("a failing command: output %q, error %v", out, err)
	}
	if err := l.KillLibvirtd(ctx); err != nil {
		t.Error(err)
	}
	if err := lab.Wait(ctx, func() error {
		_, err := l.HV.Exec(ctx, "grep", "plain reconnect begin", "/run/hooks")
		return err
	}); err != nil {
		t.Error(err)
	}
	t.Log("libvirtd again after", time.Since(start))
	if err := l.Remove(ctx, "plain"); err != nil {
		t.Error(err)
	}
	t.Log("removed after", time.Since(start))
	after, err := l.HV.KernelState(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

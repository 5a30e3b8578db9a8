package vmlink

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/rawsock"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/version"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(t *testing.T, command string) {
	t.Helper()
	words := strings.Fields(command)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// bridges puts the test's thread into a network namespace of its own with
// bridges br0 and br1.
func bridges(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good: the namespace goes with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace: %v. Fix: run the tests as root", err)
	}
	for _, b := range []string{"br0", "br1"} {
		run(t, "ip link add "+b+" type bridge mcast_snooping 0")
		run(t, "ip link set "+b+" up")
	}
}

func binding(n int) responder.Binding {
	b := responder.Binding{Version: responder.BindingVersion, UUID: "00000000-0000-4000-8000-000000000001", Name: "web1"}
	for i := range n {
		b.NICs = append(b.NICs, responder.NIC{
			Bridge: fmt.Sprintf("br%d", i), GuestMAC: mac.Addr{0x52, 0x54, 0, 0, 0, byte(i)}, GatewayMAC: mac.MustParse("02:73:6c:33:32:01"), MTU: 1500,
			V4: responder.V4{Addr: netip.MustParseAddr("192.0.2.10"), Gateway: netip.MustParseAddr("169.254.0.1"), Lease: 3600, T1: 1800, T2: 3150},
		})
	}
	return b
}

func writeBinding(t *testing.T, dir string, b any) (hash string) {
	t.Helper()
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, dir, text)
}

func writeFile(t *testing.T, dir string, text []byte) (hash string) {
	t.Helper()
	aside := filepath.Join(dir, "new")
	if err := os.WriteFile(aside, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, filepath.Join(dir, bindingFile)); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func quiet() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// started is a responder that serves without having dropped the privileges of
// the test.
type started struct {
	*vm
	dir, socket string
	done        chan error
	stop        func()
}

func start(t *testing.T, b responder.Binding) started {
	t.Helper()
	bridges(t)
	dir := t.TempDir()
	writeBinding(t, dir, b)
	v, err := open(t.Context(), Options{Dir: dir, Limits: responder.DefaultLimits(), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := started{vm: v, dir: dir, socket: filepath.Join(dir, socketFile), done: make(chan error, 1), stop: cancel}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.done <- v.serve(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		v.close()
	})
	return s
}

func TestStatus(t *testing.T) {
	s := start(t, binding(2))
	got, err := control.QueryResponder(t.Context(), s.socket)
	if err != nil {
		t.Fatal(err)
	}
	want := control.Responder{
		Up: true, PID: os.Getpid(), Version: version.Version, Since: s.since, Binding: hex.EncodeToString(s.hash[:]),
		NICs: []control.ResponderNIC{{Bridge: "br0", Verdicts: map[string]uint64{}, Last: []control.Exchange{}}, {Bridge: "br1", Verdicts: map[string]uint64{}, Last: []control.Exchange{}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	fi, err := os.Stat(s.socket)
	if err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("mode of the socket: %v, %v; want 0660", fi.Mode(), err)
	}
	s.stop()
	if err := <-s.done; err != nil {
		t.Errorf("serve: %v", err)
	}
}

// frames is a FrameConn that reads the given frames and then waits.
type frames struct {
	in     chan []byte
	closed chan struct{}
}

func (f *frames) ReadFrame(buf []byte) (int, error) {
	select {
	case b := <-f.in:
		return copy(buf, b), nil
	case <-f.closed:
		return 0, os.ErrClosed
	}
}
func (f *frames) WriteFrame([]byte) error { return nil }
func (f *frames) Close() error            { close(f.closed); return nil }

// What the writer of the status makes is what encoding/json makes of the type.
func TestStatusIsTheJSONOfTheType(t *testing.T) {
	b := binding(1)
	b.NICs[0].Bridge = `b"r\`
	link, err := responder.Compile(binding(1).NICs[0])
	if err != nil {
		t.Fatal(err)
	}
	arp := append([]byte{255, 255, 255, 255, 255, 255, 0x52, 0x54, 0, 0, 0, 0, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 0, 192, 0, 2, 10}, 0, 0, 0, 0, 0, 0, 169, 254, 0, 1)
	conn := &frames{in: make(chan []byte), closed: make(chan struct{})}
	limits := responder.Limits{responder.ClassARP: {Rate: 1, Burst: 3}}
	server := responder.NewServer(conn, link, limits, quiet())
	var kept responder.Kept
	kept.Prefixes[0] = lease.Prefix{Prefix: netip.MustParsePrefix("2001:db8:1::/64"), Via: netip.MustParseAddr("fe80::7"), IAID: 7, Expires: 1} // over
	kept.Prefixes[2] = lease.Prefix{Prefix: netip.MustParsePrefix("2001:db8:2::/64"), Via: netip.MustParseAddr("fe80::7"), IAID: 8, Expires: 32_503_680_000}
	kept.Prefixes[3] = lease.Prefix{Prefix: netip.MustParsePrefix("2001:db8:3::/64"), Via: netip.MustParseAddr("fe80::8"), IAID: 1<<32 - 1, Expires: 32_503_680_001}
	server.Restore(kept, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server.Run(ctx) }()
	for range 5 {
		conn.in <- arp
	}
	conn.in <- nil
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	nics := []nic{{key: nicKey{bridge: b.NICs[0].Bridge}, server: server}, {key: nicKey{bridge: "br1"}, server: server}}
	since := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	w, err := newStatusWriter(42, `v1 "x"`, since, nics)
	if err != nil {
		t.Fatal(err)
	}
	text := w.append(nil, true, []byte{0xab, 0xcd}, nics)
	var got control.Responder
	dec := json.NewDecoder(strings.NewReader(string(text)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	again, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var a, c any
	if err := errors.Join(json.Unmarshal(text, &a), json.Unmarshal(again, &c)); err != nil {
		t.Fatal(err)
	}
	third := time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)
	want := []control.Delegated{
		{Prefix: "2001:db8:2::/64", Via: "fe80::7", IAID: 8, Expires: third}, {Prefix: "2001:db8:3::/64", Via: "fe80::8", IAID: 1<<32 - 1, Expires: third.Add(time.Second)},
	}
	if d := cmp.Diff(want, got.NICs[0].Delegated); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(c, a); d != "" {
		t.Error(d)
	}
	counts := got.NICs[0].Verdicts
	if got.PID != 42 || got.Version != `v1 "x"` || !got.Since.Equal(since) || got.Binding != "abcd" || got.NICs[0].Bridge != `b"r\` ||
		counts["arp_reply"] != 3 || counts["rate_limited"] != 2 || len(got.NICs[1].Last) != 3 {
		t.Errorf("%s", text)
	}
	buf := make([]byte, 0, 8192)
	if n := testing.AllocsPerRun(100, func() { w.append(buf, true, nil, nics) }); n != 0 {
		t.Errorf("%v allocations per status", n)
	}
}

func TestReload(t *testing.T) {
	s := start(t, binding(2))
	first := s.hash
	for name, text := range map[string]string{
		"torn":           `{"version":1,"uuid":"0000`,
		"empty":          "",
		"version":        `{"version":9}`,
		"unknown field":  `{"version":1,"colour":"red"}`,
		"other VM":       `{"version":1,"uuid":"00000000-0000-4000-8000-000000000002","name":"x","nics":[]}`,
		"one bridge":     strings.ReplaceAll(marshal(t, binding(2)), "br1", "br0"),
		"invalid NIC":    strings.ReplaceAll(marshal(t, binding(2)), `"mtu":1500`, `"mtu":1`),
		"trailing words": marshal(t, binding(2)) + "{}",
	} {
		writeFile(t, s.dir, []byte(text))
		if r, err := control.ReloadResponder(t.Context(), s.socket); err == nil {
			t.Errorf("%s: taken over: %+v", name, r)
		}
	}
	if err := os.Remove(filepath.Join(s.dir, bindingFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := control.ReloadResponder(t.Context(), s.socket); err == nil {
		t.Error("no file: taken over")
	}
	if r, err := control.QueryResponder(t.Context(), s.socket); err != nil || r.Binding != hex.EncodeToString(first[:]) {
		t.Errorf("after bad bindings: %v, binding %s; want the first, %x", err, r.Binding, first)
	}

	b := binding(2)
	b.NICs[0], b.NICs[1] = b.NICs[1], b.NICs[0]
	b.NICs[0].V4.DNS = []netip.Addr{netip.MustParseAddr("9.9.9.9")}
	hash := writeBinding(t, s.dir, b)
	if r, err := control.ReloadResponder(t.Context(), s.socket); err != nil || r.Binding != hash {
		t.Errorf("reload: %v, binding %s, want %s", err, r.Binding, hash)
	}

	writeBinding(t, s.dir, binding(1))
	if r, err := control.ReloadResponder(t.Context(), s.socket); err != nil || r.Binding != hash {
		t.Errorf("reload with a NIC less: %v, binding %s", err, r.Binding)
	}
	if err := <-s.done; err != nil {
		t.Errorf("serve: %v, want nil when the NICs change", err)
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Clients that are stuck, talk too much or too little do no harm.
func TestControlSurvivesItsClients(t *testing.T) {
	s := start(t, binding(1))
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	silent, long, unknown, twice := dial(), dial(), dial(), dial()
	if _, err := long.Write([]byte(strings.Repeat("x", 2*maxLine))); err != nil {
		t.Fatal(err)
	}
	if _, err := unknown.Write([]byte("dance \"\x01\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := twice.Write([]byte("status\nstatus\n")); err != nil {
		t.Fatal(err)
	}
	dial().Close()
	if err := twice.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(silent); len(text) > 0 || err != nil {
		t.Errorf("silent client: %q, %v", text, err)
	}
	if text, _ := io.ReadAll(long); len(text) > 0 { // its end is a reset: bytes were left unread
		t.Errorf("client without an end of line: %q", text)
	}
	var failure struct{ Error string }
	if err := json.NewDecoder(unknown).Decode(&failure); err != nil || !strings.Contains(failure.Error, "unknown request") {
		t.Errorf("unknown request: %v, %q", err, failure.Error)
	}
	_ = unknown.Close()
	text, err := io.ReadAll(twice)
	if err != nil || strings.Count(string(text), "\n") != 2 {
		t.Errorf("two requests in one write: %q, %v", text, err)
	}
	if _, err := control.QueryResponder(t.Context(), s.socket); err != nil {
		t.Error(err)
	}
}

func TestRemovedBridgeEndsTheRun(t *testing.T) {
	s := start(t, binding(2))
	run(t, "ip link del br1")
	err := <-s.done
	if !errors.Is(err, rawsock.ErrGone) || !strings.Contains(err.Error(), "bridge br1 was removed") {
		t.Errorf("serve: %v", err)
	}
}

func TestOneResponderPerVM(t *testing.T) {
	s := start(t, binding(1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(ctx, Options{Dir: s.dir, Log: quiet()}); err == nil || !strings.Contains(err.Error(), "another responder") {
		t.Errorf("a second responder: %v", err)
	}
	if _, err := control.QueryResponder(t.Context(), s.socket); err != nil {
		t.Errorf("the first one afterwards: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	bridges(t)
	for name, c := range map[string]struct {
		text, want string
	}{
		"no bridge":  {strings.ReplaceAll(marshal(t, binding(1)), "br0", "br7"), "br7"},
		"no version": {"{}", "version 0"},
		"not JSON":   {"hello", bindingFile},
	} {
		dir := t.TempDir()
		writeFile(t, dir, []byte(c.text))
		if _, err := open(t.Context(), Options{Dir: dir, Log: quiet()}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want something about %q", name, err, c.want)
		}
		if _, err := os.Stat(filepath.Join(dir, socketFile)); err == nil {
			t.Errorf("%s: a socket is there", name)
		}
	}
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, bindingFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t.Context(), Options{Dir: dir, Log: quiet()}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link as binding: %v", err)
	}
	if _, err := open(t.Context(), Options{Dir: filepath.Join(dir, "none"), Log: quiet()}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := dialNotify(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.ready(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if k, err := l.Read(buf); err != nil || string(buf[:k]) != "READY=1" {
		t.Errorf("systemd hears %q, %v", buf[:k], err)
	}
	var none notifier
	if err := none.ready(); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	if _, err := dialNotify(path + "x"); err == nil {
		t.Error("no error when nobody listens")
	}
}

func TestSyscallFilter(t *testing.T) {
	const pid = 1234
	vm, err := bpf.NewVM(syscallFilter(pid, 9))
	if err != nil {
		t.Fatal(err)
	}
	const execve, socket, openat = unix.SYS_EXECVE, unix.SYS_SOCKET, unix.SYS_OPENAT
	for _, c := range []struct {
		name   string
		arch   uint32
		number uint32
		args   [6]uint32
		allow  bool
	}{
		{"read", auditArch, unix.SYS_READ, [6]uint32{}, true},
		{"write", auditArch, unix.SYS_WRITE, [6]uint32{}, true},
		{"read as another machine", auditArch ^ 1, unix.SYS_READ, [6]uint32{}, false},
		{"write of the lease file", auditArch, unix.SYS_PWRITE64, [6]uint32{9}, true},
		{"write at an offset of another file", auditArch, unix.SYS_PWRITE64, [6]uint32{8}, false},
		{"execve", auditArch, execve, [6]uint32{}, false},
		{"socket", auditArch, socket, [6]uint32{}, false},
		{"connect", auditArch, unix.SYS_CONNECT, [6]uint32{}, false},
		{"ptrace", auditArch, unix.SYS_PTRACE, [6]uint32{}, false},
		{"setuid", auditArch, unix.SYS_SETUID, [6]uint32{}, false},
		{"open for reading", auditArch, openat, [6]uint32{2: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW}, true},
		{"open for writing", auditArch, openat, [6]uint32{2: unix.O_WRONLY}, false},
		{"open for both", auditArch, openat, [6]uint32{2: unix.O_RDWR}, false},
		{"create", auditArch, openat, [6]uint32{2: unix.O_CREAT}, false},
		{"map memory", auditArch, unix.SYS_MMAP, [6]uint32{2: unix.PROT_READ | unix.PROT_WRITE}, true},
		{"map code", auditArch, unix.SYS_MMAP, [6]uint32{2: unix.PROT_READ | unix.PROT_EXEC}, false},
		{"protect memory", auditArch, unix.SYS_MPROTECT, [6]uint32{}, false},
		{"thread", auditArch, unix.SYS_CLONE, [6]uint32{0: unix.CLONE_VM | unix.CLONE_THREAD}, true},
		{"fork", auditArch, unix.SYS_CLONE, [6]uint32{0: uint32(unix.SIGCHLD)}, false},
		{"signal to itself", auditArch, unix.SYS_TGKILL, [6]uint32{0: pid}, true},
		{"signal to another", auditArch, unix.SYS_TGKILL, [6]uint32{0: 1}, false},
		{"flags of an interface", auditArch, unix.SYS_IOCTL, [6]uint32{1: unix.SIOCGIFFLAGS}, true},
		{"another ioctl", auditArch, unix.SYS_IOCTL, [6]uint32{1: unix.TIOCSTI}, false},
		{"name of a mapping", auditArch, unix.SYS_PRCTL, [6]uint32{0: unix.PR_SET_VMA}, true},
		{"another prctl", auditArch, unix.SYS_PRCTL, [6]uint32{0: unix.PR_SET_DUMPABLE}, false},
	} {
		// The machine for tests loads big-endian words.
		data := binary.BigEndian.AppendUint32(nil, c.number)
		data = binary.BigEndian.AppendUint32(data, c.arch)
		data = append(data, make([]byte, 8)...)
		for _, a := range c.args {
			data = binary.BigEndian.AppendUint32(data, a)
			data = append(data, 0, 0, 0, 0)
		}
		got, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		want := uint32(unix.SECCOMP_RET_KILL_PROCESS)
		if c.allow {
			want = unix.SECCOMP_RET_ALLOW
		}
		if uint32(got) != want {
			t.Errorf("%s: %#x, want %#x", c.name, got, want)
		}
	}
}

func TestLookup(t *testing.T) {
	if uid, gid, err := lookup("nobody"); err != nil || uid != nobody || gid == 0 {
		t.Errorf("nobody: %d, %d, %v", uid, gid, err)
	}
	for _, account := range []string{"root", "", "no-such-account"} {
		if uid, _, err := lookup(account); err == nil {
			t.Errorf("%q: uid %d, want an error", account, uid)
		}
	}
}

func FuzzParseBinding(f *testing.F) {
	for n := range 3 {
		text, err := json.Marshal(binding(n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parseBinding(text)
		if err != nil {
			return
		}
		for _, n := range b.NICs {
			if _, err := responder.Compile(n); err == nil && n.GuestMAC.IsZero() {
				t.Errorf("a NIC without a MAC address compiles: %s", text)
			}
		}
	})
}

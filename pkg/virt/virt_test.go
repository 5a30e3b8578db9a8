package virt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/sirupsen/logrus/hooks/test"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"github.com/slash32/slash32/pkg/virt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for a condition.
const patience = 60 * time.Second

// start runs a Conn until the test ends. What it wakes for comes on the channel.
func start(t *testing.T, uri string) (*virt.Conn, <-chan string) {
	t.Helper()
	log, _ := test.NewNullLogger()
	c := virt.New(uri, log)
	reasons := make(chan string, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, func(why string) { reasons <- why }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c, reasons
}

// await returns when that reason has come; others are passed over.
func await(t *testing.T, reasons <-chan string, want string) {
	t.Helper()
	deadline := time.After(patience)
	var seen []string
	for {
		select {
		case r := <-reasons:
			if r == want {
				return
			}
			seen = append(seen, r)
		case <-deadline:
			t.Fatalf("no wake for %q; there were %q", want, seen)
		}
	}
}

// find is the domain of that name in a fresh list.
func find(t *testing.T, c *virt.Conn, name string) (virt.Domain, bool) {
	t.Helper()
	domains, err := c.Snapshot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(domains, func(d virt.Domain) bool { return d.Name == name })
	if i < 0 {
		return virt.Domain{}, false
	}
	return domains[i], true
}

const web1UUID = "5f3a6f0e-25a1-4d7c-9f3c-0d3b7d3f2a11"

const web1XML = `<domain type='test'><name>web1</name><uuid>` + web1UUID + `</uuid><memory>4096</memory><os><type>hvm</type></os>
<metadata><slash32:network xmlns:slash32="urn:slash32:domain:1" ipv4="203.0.113.42"/></metadata>
<devices><interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='web1'/></interface></devices></domain>`

// other is a second connection to the same libvirt, as virsh has.
func other(t *testing.T, uri string) *libvirt.Connect {
	t.Helper()
	c, err := libvirt.NewConnect(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func create(t *testing.T, c *libvirt.Connect) *libvirt.Domain {
	t.Helper()
	d, err := c.DomainCreateXML(web1XML, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Free(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestLifeOfADomain(t *testing.T) {
	const uri = "test:///default"
	c, reasons := start(t, uri)
	await(t, reasons, "connected")
	if connected, _ := c.State(); !connected {
		t.Error("State does not say connected")
	}
	if _, ok := find(t, c, "test"); !ok {
		t.Error("the driver's own domain is not in the list")
	}

	d := create(t, other(t, uri))
	await(t, reasons, "lifecycle")
	got, ok := find(t, c, "web1")
	if !ok {
		t.Fatal("not in the list")
	}
	if !strings.Contains(got.XML, `urn:slash32:domain:1" ipv4="203.0.113.42"`) || !strings.Contains(got.XML, "52:54:00:00:00:01") {
		t.Errorf("XML: %s", got.XML)
	}
	id, err := d.GetID()
	if err != nil {
		t.Fatal(err)
	}
	want := virt.Domain{UUID: uuid.MustParse(web1UUID), Name: "web1", ID: int(id), XML: got.XML, State: "running"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	if err := d.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, `<network ipv4="203.0.113.43"/>`, "slash32", "urn:slash32:domain:1", libvirt.DOMAIN_AFFECT_LIVE); err != nil {
		t.Fatal(err)
	}
	await(t, reasons, "metadata changed")
	if got, _ := find(t, c, "web1"); !strings.Contains(got.XML, "203.0.113.43") {
		t.Errorf("the XML is old: %s", got.XML)
	}

	if err := d.Suspend(); err != nil {
		t.Fatal(err)
	}
	await(t, reasons, "lifecycle")
	if got, _ := find(t, c, "web1"); got.State != "paused" {
		t.Errorf("state %q", got.State)
	}

	if err := d.Destroy(); err != nil {
		t.Fatal(err)
	}
	await(t, reasons, "lifecycle")
	if _, ok := find(t, c, "web1"); ok {
		t.Error("still in the list")
	}
}

func TestNoLibvirt(t *testing.T) {
	c, _ := start(t, "qemu+unix:///system?socket="+filepath.Join(t.TempDir(), "none"))
	deadline := time.Now().Add(patience)
	for {
		_, err := c.Snapshot(context.Background())
		if err == nil {
			t.Fatal("a list without a libvirt")
		}
		if strings.Contains(err.Error(), "No such file") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
	if connected, _ := c.State(); connected {
		t.Error("State says connected")
	}
}

// TestLibvirtNeverAnswers holds that Run ends though connecting hangs.
func TestLibvirtNeverAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn)
	go func() {
		c, err := l.Accept()
		if err == nil {
			accepted <- c
		}
	}()
	log, _ := test.NewNullLogger()
	c := virt.New("qemu+unix:///system?socket="+path, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, func(string) {}) }()
	server := <-accepted
	if _, err := c.Snapshot(context.Background()); err == nil {
		t.Error("a list without an answer")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	// Only now the attempt that hangs may end.
	if err := errors.Join(server.Close(), l.Close()); err != nil {
		t.Error(err)
	}
}

// daemon is a libvirtd of nobody's, with its files in a directory.
type daemon struct {
	dir string
	cmd *exec.Cmd
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	if _, err := exec.LookPath("libvirtd"); err != nil || os.Getuid() != 0 {
		t.Fatal("needs root and libvirtd. Fix: test/setup.sh test")
	}
	dir, err := os.MkdirTemp("", "s32")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{dir: dir}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	d.start(t)
	t.Cleanup(func() {
		d.kill(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return d
}

const nobody = 65534

func (d *daemon) socket() string { return filepath.Join(d.dir, "libvirt", "libvirt-sock") }
func (d *daemon) uri() string    { return "test+unix:///default?socket=" + d.socket() }

func (d *daemon) start(t *testing.T) {
	t.Helper()
	d.cmd = exec.Command("libvirtd")
	d.cmd.Dir = d.dir
	d.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.dir}
	for _, v := range []string{"XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"} {
		d.cmd.Env = append(d.cmd.Env, v+"="+d.dir)
	}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
		Pdeathsig:  unix.SIGKILL,
	}
	var log strings.Builder
	d.cmd.Stdout, d.cmd.Stderr = io.Discard, &log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		c, err := net.Dial("unix", d.socket())
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(deadline) {
			d.kill(t)
			t.Fatalf("libvirtd does not come up: %v\n%s", err, log.String())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (d *daemon) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Error(err)
	}
}

func (d *daemon) kill(t *testing.T) {
	t.Helper()
	d.signal(t, unix.SIGKILL)
	_ = d.cmd.Wait() // says that it was killed
}

func TestLibvirtdRestarts(t *testing.T) {
	d := newDaemon(t)
	c, reasons := start(t, d.uri())
	await(t, reasons, "connected")
	for range 2 {
		if _, ok := find(t, c, "test"); !ok {
			t.Error("not in the list")
		}
		d.kill(t)
		await(t, reasons, "connection lost")
		if _, err := c.Snapshot(context.Background()); err == nil || !strings.Contains(err.Error(), "no connection to "+d.uri()) {
			t.Errorf("got %v", err)
		}
		d.start(t)
		await(t, reasons, "connected")
	}
	create(t, other(t, d.uri()))
	await(t, reasons, "lifecycle")
	if _, ok := find(t, c, "web1"); !ok {
		t.Error("not in the list")
	}
}

func TestLibvirtdHangs(t *testing.T) {
	d := newDaemon(t)
	c, reasons := start(t, d.uri())
	await(t, reasons, "connected")
	d.signal(t, unix.SIGSTOP)
	for i := range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if _, err := c.Snapshot(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("list %d: %v", i, err)
		}
		cancel()
	}
	await(t, reasons, "connection lost")
	if connected, _ := c.State(); connected {
		t.Error("State says connected")
	}
	d.signal(t, unix.SIGCONT)
	await(t, reasons, "connected")
	if _, ok := find(t, c, "test"); !ok {
		t.Error("not in the list")
	}
}

// TestShortHang holds that one late list costs nothing.
func TestShortHang(t *testing.T) {
	d := newDaemon(t)
	c, reasons := start(t, d.uri())
	await(t, reasons, "connected")
	d.signal(t, unix.SIGSTOP)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Snapshot(ctx); err == nil {
		t.Error("a list without an answer")
	}
	d.signal(t, unix.SIGCONT)
	if _, ok := find(t, c, "test"); !ok {
		t.Error("not in the list")
	}
	select {
	case r := <-reasons:
		t.Errorf("woken for %q", r)
	default:
	}
}

func TestManyDomains(t *testing.T) {
	const uri, many = "test:///default", 100
	c, reasons := start(t, uri)
	await(t, reasons, "connected")
	lv := other(t, uri)
	for i := range many {
		name := fmt.Sprintf("many%d", i)
		d, err := lv.DomainCreateXML(`<domain type='test'><name>`+name+`</name><memory>4096</memory><os><type>hvm</type></os></domain>`, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(d.Destroy(), d.Free()); err != nil {
				t.Error(err)
			}
		})
	}
	for range 2 { // asked for, then kept
		domains, err := c.Snapshot(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if len(domains) != many+1 {
			t.Errorf("%d domains", len(domains))
		}
		for _, d := range domains {
			if d.XML == "" || d.UUID == uuid.Nil {
				t.Errorf("incomplete: %+v", d)
			}
		}
	}
}

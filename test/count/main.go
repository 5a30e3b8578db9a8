// Command count runs the tests of the packages it is given (default: all),
// prints a line for each package and the whole output of each failed test, and
// ends with one line "N passed, M failed, K skipped". A skipped test is named;
// with CI=true it makes the run a failure.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

func run(packages []string, out io.Writer) int {
	if len(packages) == 0 {
		packages = []string{"./cmd/...", "./hooks/...", "./pkg/...", "./test/..."}
	}
	// Two packages at once: the labs of the slow ones want a core each.
	args := append([]string{"test", "-json", "-count=1", "-tags=libvirt_dlopen", "-p=2", "-timeout=20m"}, packages...)
	cmd := exec.Command("go", args...)
	cmd.Stderr = out
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(out, "count:", err)
		return 1
	}
	c := newCounter(out)
	readErr := c.read(pipe)
	waitErr := cmd.Wait()
	if readErr != nil {
		fmt.Fprintln(out, "count:", readErr)
	}
	for _, s := range c.skips {
		fmt.Fprintln(out, "skipped:", s)
	}
	// What fails outside of any test (a build, a panic, a vet finding) counts too.
	if waitErr != nil && c.failed == 0 {
		fmt.Fprintln(out, "count: go test:", waitErr)
		c.failed++
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", c.passed, c.failed, len(c.skips))
	if c.failed > 0 || readErr != nil || len(c.skips) > 0 && os.Getenv("CI") == "true" {
		return 1
	}
	return 0
}

// event is one line of go test -json (go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a build event
	Test        string
	Output      string
	Elapsed     float64 // seconds
	FailedBuild string
}

type counter struct {
	out            io.Writer
	passed, failed int
	skips          []string
	output         map[string][]string // by package and test, of those that are not done
	failedTests    map[string]int      // by package
}

func newCounter(out io.Writer) *counter {
	return &counter{out: out, output: map[string][]string{}, failedTests: map[string]int{}}
}

func (c *counter) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if err := json.Unmarshal(line, &e); err != nil {
				fmt.Fprintf(c.out, "%s", line) // not of go test: show it
			} else {
				c.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the output of go test: %w", err)
		}
	}
}

func (c *counter) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		c.output[key] = append(c.output[key], e.Output)
	case "build-output":
		fmt.Fprint(c.out, e.Output)
	case "pass":
		if e.Test != "" {
			c.passed++
		} else {
			fmt.Fprintf(c.out, "ok    %7.1fs  %s\n", e.Elapsed, e.Package)
		}
		delete(c.output, key)
	case "skip":
		if e.Test != "" {
			c.skips = append(c.skips, key+": "+reason(c.output[key]))
		}
		delete(c.output, key)
	case "fail":
		c.fail(e, key)
	}
}

// fail prints what a test, or a package outside its tests, has said.
func (c *counter) fail(e event, key string) {
	if e.Test != "" {
		c.failed++
		c.failedTests[e.Package]++
		fmt.Fprintf(c.out, "FAIL  %s\n%s", key, strings.Join(c.output[key], ""))
		delete(c.output, key)
		return
	}
	fmt.Fprintf(c.out, "FAIL  %7.1fs  %s\n", e.Elapsed, e.Package)
	if c.failedTests[e.Package] == 0 {
		c.failed++ // a build, a panic, a timeout
	}
	// A test that was cut off by a panic or a timeout has no end of its own.
	var rest []string
	for k := range c.output {
		if strings.HasPrefix(k, e.Package+" ") {
			rest = append(rest, k)
		}
	}
	slices.Sort(rest)
	for _, k := range rest {
		fmt.Fprint(c.out, strings.Join(c.output[k], ""))
		delete(c.output, k)
	}
}

// reason is what a skipped test has said, on one line.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			said = append(said, line)
		}
	}
	return strings.Join(said, " ")
}

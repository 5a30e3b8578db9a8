package annotation

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
)

// What is read at most. Everything beyond is an error, so that no XML makes the
// parser work long or a VM's plan large.
const (
	maxDepth      = 64  // of elements
	maxDomainNICs = 256 // <interface> of a domain, ours or not
	maxProblems   = 32  // reported
	maxText       = 256 // bytes of <name> and of other text
	maxElements   = 512 // in the annotation
	maxAttrs      = 32  // of one element
)

// namespaceFamily starts the URI of every version of the namespace.
const namespaceFamily = "urn:slash32:"

// prefix is the XML prefix that people write; it only matters where nothing
// binds it to a namespace.
const prefix = "slash32"

// Mentions tells, without parsing, whether a domain's XML may be annotated:
// false is certain for what libvirt writes, which escapes nothing in our URI.
func Mentions(xml []byte) bool { return bytes.Contains(xml, []byte(namespaceFamily)) }

// Parse reads a domain's XML. What it could read is in the Domain even when
// there are problems; a problem of the annotation leaves Network as far as it
// was understood. Lines are those of b. DTDs are refused, entities other than
// XML's own five are errors, and nothing is ever fetched.
func Parse(b []byte) (Domain, problem.List) {
	r := &reader{}
	if len(b) > MaxXML {
		r.add(problem.EXML, 0, fmt.Sprintf("the domain's XML has %d bytes; at most %d are read", len(b), MaxXML), "make it smaller")
		return r.domain, r.problems
	}
	r.dec = xml.NewDecoder(bytes.NewReader(b))
	if err := r.document(); err != nil {
		var stop stopError
		if !errors.As(err, &stop) {
			var syntax *xml.SyntaxError
			line, text := 0, err.Error()
			if errors.As(err, &syntax) {
				line, text = syntax.Line, syntax.Msg
			}
			if errors.Is(err, io.EOF) {
				text = "the end is missing"
			}
			r.add(problem.EXML, line, "the domain's XML cannot be read: "+text, "check it with virt-xml-validate")
		}
	}
	return r.domain, r.problems.WithVM(r.domain.Name)
}

// stopError ends the reading; its problem is recorded already.
type stopError struct{}

func (stopError) Error() string { return "stopped" }

type reader struct {
	dec      *xml.Decoder
	depth    int
	elements int
	domain   Domain
	problems problem.List
}

func (r *reader) add(code problem.Code, line int, what, fix string) {
	if len(r.problems) < maxProblems {
		r.problems = append(r.problems, problem.Problem{Code: code, Line: line, What: what, Fix: fix})
	}
}

func (r *reader) stop(line int, what, fix string) error {
	r.add(problem.EXML, line, what, fix)
	return stopError{}
}

// next returns one token and the line where it begins.
func (r *reader) next() (xml.Token, int, error) {
	line, _ := r.dec.InputPos()
	t, err := r.dec.Token()
	if err != nil {
		return nil, line, err
	}
	switch t.(type) {
	case xml.Directive:
		return nil, line, r.stop(line, "a document type declaration in the domain's XML", "remove <!DOCTYPE ...>; libvirt writes none")
	case xml.StartElement:
		if r.depth++; r.depth > maxDepth {
			return nil, line, r.stop(line, fmt.Sprintf("elements nested more than %d deep", maxDepth), "remove the nesting")
		}
	case xml.EndElement:
		r.depth--
	}
	return t, line, nil
}

// children calls f for each child element of the one just begun; f reads up to
// the child's end.
func (r *reader) children(f func(e xml.StartElement, line int) error) error {
	for {
		t, line, err := r.next()
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.EndElement:
			return nil
		case xml.StartElement:
			if err := f(t, line); err != nil {
				return err
			}
		}
	}
}

// skip reads up to the end of the element just begun.
func (r *reader) skip() error {
	for end := r.depth - 1; r.depth > end; {
		if _, _, err := r.next(); err != nil {
			return err
		}
	}
	return nil
}

// text reads the element just begun as text, cut at maxText bytes.
func (r *reader) text() (string, error) {
	var b []byte
	for end := r.depth - 1; r.depth > end; {
		t, _, err := r.next()
		if err != nil {
			return "", err
		}
		if c, ok := t.(xml.CharData); ok && len(b) < maxText {
			b = append(b, c...)
		}
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(b[:min(len(b), maxText)]), "")), nil
}

func (r *reader) document() error {
	for seen := false; ; {
		t, line, err := r.next()
		switch {
		case errors.Is(err, io.EOF) && seen:
			return nil
		case err != nil:
			return err
		}
		switch t := t.(type) {
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return r.stop(line, "text outside the domain's XML", "give the output of virsh dumpxml alone")
			}
		case xml.StartElement:
			if t.Name.Local != "domain" || seen {
				return r.stop(line, fmt.Sprintf("element <%s> where one <domain> is expected", clip(t.Name.Local)), "give a domain's XML, as virsh dumpxml prints it")
			}
			seen = true
			if err := r.root(t); err != nil {
				return err
			}
		}
	}
}

func (r *reader) root(e xml.StartElement) error {
	if id, err := strconv.ParseInt(attrOf(e, "id"), 10, 32); err == nil && id > 0 {
		r.domain.ID = int(id)
	}
	return r.children(func(e xml.StartElement, line int) error {
		if e.Name.Space != "" {
			return r.skip()
		}
		switch e.Name.Local {
		case "name":
			s, err := r.text()
			r.domain.Name = s
			return err
		case "uuid":
			s, err := r.text()
			if err != nil {
				return err
			}
			if r.domain.UUID, err = uuid.Parse(s); err != nil {
				r.domain.UUID = uuid.Nil
				r.add(problem.EXML, line, "the domain's UUID "+problem.Quote(s)+" is malformed", "write it like 4fb7d61c-7e0d-4e12-a887-108288c9695d")
			}
			return nil
		case "metadata":
			return r.children(r.metadata)
		case "devices":
			return r.children(r.device)
		}
		return r.skip()
	})
}

func (r *reader) metadata(e xml.StartElement, line int) error {
	name, space := e.Name.Local, e.Name.Space
	switch {
	case space == marks.Namespace && name == "network" && r.domain.Network == nil:
		root, err := r.element(e, line)
		if err != nil {
			return err
		}
		n, ps := interpret(root, xmlForm)
		r.domain.Network = n
		for _, p := range ps {
			r.add(p.Code, p.Line, p.What, p.Fix)
		}
		return nil
	case space == marks.Namespace && name == "network":
		r.add(problem.EDuplicate, line, fmt.Sprintf("a second <network> of slash32; the first is in line %d", r.domain.Network.Line), "keep one; it may have several <interface> elements")
	case space == marks.Namespace:
		r.add(problem.EUnknown, line, fmt.Sprintf("unknown element <%s> of slash32 under <metadata>", clip(name)), "the annotation is one element <network>")
	case strings.HasPrefix(space, namespaceFamily):
		r.add(problem.ENamespace, line, fmt.Sprintf("namespace %s is not one that this version reads", problem.Quote(space)), setCommand(r.domain.Name))
	case space == prefix, space == "" && name == "network":
		r.add(problem.ENamespace, line, fmt.Sprintf("<%s> under <metadata> has no namespace", clip(name)), setCommand(r.domain.Name))
	}
	return r.skip()
}

// setCommand is the command that writes an annotation as it should be.
func setCommand(name string) string {
	if !names.Safe(name) {
		name = "VM" // anything else would need a shell's quotes
	}
	return fmt.Sprintf(`virsh metadata %s --uri %s --key %s --set '<network ipv4="203.0.113.42"/>' --config`, name, marks.Namespace, prefix)
}

// element reads one element of the annotation with all below it.
func (r *reader) element(e xml.StartElement, line int) (element, error) {
	if r.elements++; r.elements > maxElements {
		return element{}, r.stop(line, fmt.Sprintf("more than %d elements in the annotation", maxElements), "remove some")
	}
	if len(e.Attr) > maxAttrs {
		return element{}, r.stop(line, fmt.Sprintf("more than %d attributes in <%s>", maxAttrs, clip(e.Name.Local)), "remove some")
	}
	out := element{name: e.Name.Local, line: line}
	for _, a := range e.Attr {
		// Only namespace declarations and attributes of other namespaces have
		// a space here that is not ours; none of them is for us.
		if (a.Name.Space == "" && a.Name.Local != "xmlns") || a.Name.Space == marks.Namespace {
			out.attrs = append(out.attrs, attr{a.Name.Local, a.Value, line})
		}
	}
	for {
		t, line, err := r.next()
		if err != nil {
			return element{}, err
		}
		switch t := t.(type) {
		case xml.EndElement:
			return out, nil
		case xml.CharData:
			if s := strings.TrimSpace(string(t)); s != "" && out.text == "" {
				out.text = s
			}
		case xml.StartElement:
			switch t.Name.Space {
			case "", marks.Namespace:
				kid, err := r.element(t, line)
				if err != nil {
					return element{}, err
				}
				out.kids = append(out.kids, kid)
			case prefix:
				r.add(problem.ENamespace, line, fmt.Sprintf("<%s:%s> uses a prefix that is not declared", prefix, clip(t.Name.Local)), "leave the prefix out: <"+clip(t.Name.Local)+">")
				fallthrough
			default:
				if err := r.skip(); err != nil {
					return element{}, err
				}
			}
		}
	}
}

func (r *reader) device(e xml.StartElement, line int) error {
	if e.Name.Local != "interface" || e.Name.Space != "" {
		return r.skip()
	}
	if len(r.domain.NICs) == maxDomainNICs {
		return r.stop(line, fmt.Sprintf("more than %d network interfaces", maxDomainNICs), "remove some")
	}
	n := NIC{Line: line, Type: clip(attrOf(e, "type"))}
	err := r.children(func(e xml.StartElement, _ int) error {
		if e.Name.Space != "" {
			return r.skip()
		}
		switch e.Name.Local {
		case "mac":
			// What libvirt itself would not take stays the zero value.
			n.MAC, _ = mac.Parse(attrOf(e, "address"))
		case "source":
			n.Bridge = clip(attrOf(e, "bridge"))
			if attrOf(e, "network") != "" {
				// From start on, libvirt shows the actual type (bridge) of an
				// interface that a libvirt network owns.
				n.Type = "network"
			}
		case "target":
			n.Tap = clip(attrOf(e, "dev"))
		case "mtu":
			if v, err := strconv.ParseUint(attrOf(e, "size"), 10, 16); err == nil {
				n.MTU = uint16(v)
			}
		}
		return r.skip()
	})
	r.domain.NICs = append(r.domain.NICs, n)
	return err
}

func attrOf(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name.Space == "" && a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// clip bounds a name from the XML that is kept or shown.
func clip(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), 64)], "")
}

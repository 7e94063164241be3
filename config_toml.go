package main

// Strict TOML: any file into any struct with toml tags, and every mistake in it with
// file, line and what would be right, in one run. It knows TOML and reflection and
// not one key of berth, which is why it stands apart from config.go: users.d files
// go through it just the same. config_tree.go says what is TOML; the walk into the struct
// is our own, because go-toml's ends at the first value of the wrong kind and tells
// about Go types.

import (
	"bytes"
	"cmp"
	"encoding"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"

	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	// maxSyntaxErrors is how many broken lines are reported in one run: more than
	// that is not a configuration with mistakes but some other file.
	maxSyntaxErrors = 20

	// maxConfigErrors is how many mistakes one file may tell of: nobody reads on, and
	// a file of another kind can have one a line.
	maxConfigErrors = 1000

	// maxQuoted is how much of a wrong value an error repeats: enough to find it.
	// No key is longer, either.
	maxQuoted = 64

	// maxKeyPath ends the book-keeping of places inside a value. No key of a real
	// file comes near, and a file of nothing but "a.a.a" or "[[[[" would cost the
	// square of its length.
	maxKeyPath = 1024
)

// tomlExample is a type that knows what a right value of it looks like in TOML.
// TOML numbers carry no unit, so such types are strings, and an error about a bare
// number shows one of these.
type tomlExample interface{ example() string }

// --- errors ---

// configError is one mistake in a file. Line 0 means the file as a whole; Column
// counts bytes from 1 and is 0 where the line says enough.
type configError struct {
	File    string
	Line    int
	Column  int
	Key     string // dotted, as "passive.for[0].network"; "" where no key is meant
	Problem string // what is wrong; what would be right
}

// Error is "file:line:column: key: problem" without the parts that are not known.
func (e configError) Error() string {
	var b builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
		if e.Column > 0 {
			fmt.Fprintf(&b, ":%d", e.Column)
		}
	}
	b.WriteString(": ")
	if key := e.Key; key != "" {
		if len(key) > 2*maxQuoted {
			key = key[:2*maxQuoted] + "..."
		}
		b.WriteString(key)
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	// A key or a parser's message may hold a line end, and there is one error a line.
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, b.String())
}

// configErrors is every mistake found in one file, in the order of its lines.
type configErrors []configError

// Error has one mistake a line.
func (es configErrors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// has tells whether key, or something inside it, was found wrong, so that the
// default which stands in its place is not judged as well.
//
// Not inlined, as usageErr.
//
//go:noinline
func (es configErrors) has(key string) bool {
	return slices.ContainsFunc(es, func(e configError) bool {
		rest, ok := cutPrefix(e.Key, key)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// configQuote is %q for a value that may be as long as the file.
func configQuote(s string) string {
	if len(s) > maxQuoted {
		s = strings.ToValidUTF8(s[:maxQuoted], "") + "..."
	}
	return strconv.Quote(s)
}

// --- strict decoding ---

// decodeStrict fills into, a pointer to a struct with toml tags, from data and
// returns every mistake: broken syntax, unknown keys with the nearest known one,
// values of the wrong kind. What was right is set in any case, and what was not
// keeps its value, so that a caller can go on to find mistakes of meaning, with
// lineOf for their lines. Anything with UnmarshalText is a string in the file, and
// its error is the problem that is told.
func decodeStrict(file string, data []byte, into any) configErrors {
	v := reflect.ValueOf(into).Elem()
	doc := parseTOML(file, data, v.Type())
	doc.decode(v)
	doc.sort()
	return doc.errs
}

// lineOf is the line of a dotted key of data, as "tls.key" or "passive.for[1].address";
// for a key that is not there the line of the nearest table around it, and 0 if
// there is none.
func lineOf(data []byte, key string) int {
	return positionsOf(trimBOM(data)).line(key)
}

// configPosition is a place in a file, both counted from 1; Column is in bytes.
type configPosition struct{ Line, Column int }

// configPositions tells where each dotted key, table and array element begins.
type configPositions map[string]struct{ key, value configPosition }

func (p configPositions) line(key string) int {
	for key != "" {
		if at, ok := p[key]; ok {
			return at.key.Line
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
	return 0
}

// tomlDocument is one parsed file on its way into a struct.
type tomlDocument struct {
	file string
	root reflect.Type
	tree map[string]any
	at   configPositions
	errs configErrors
	// partial: lines with broken syntax were left out, so that a key which seems
	// to be missing may only be misspelt.
	partial bool
}

//go:noinline
func trimBOM(data []byte) []byte { return bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) }

// parseTOML reads data as far as it can be read. The parser stops at the first
// error, so a broken line is blanked and the rest read again: most mistakes, as a
// time without quotes, are confined to their line and come in groups. An error that
// is not (an array never closed, a table header) ends the reading there.
func parseTOML(file string, data []byte, root reflect.Type) *tomlDocument {
	doc := &tomlDocument{file: file, root: root}
	work := bytes.Clone(trimBOM(data))
	for {
		var err *tomlError
		if doc.tree, err = tomlTree(work); err == nil {
			break
		}
		doc.partial = true
		from, to := tomlLineBounds(work, err.at.Line)
		text := work[from:to]
		confined := doc.syntaxError(work, string(text), err)
		if confined && len(doc.errs) < maxSyntaxErrors {
			for i := range text {
				text[i] = ' '
			}
			continue
		}
		work = work[:min(from, parsedUpTo(work))]
		if doc.tree, err = tomlTree(work); err != nil {
			work = nil
		}
		break
	}
	doc.at = positionsOf(work)
	return doc
}

// add records a mistake, unless there are too many already.
//
//go:noinline
func (doc *tomlDocument) add(e configError) {
	if len(doc.errs) < maxConfigErrors {
		doc.errs = append(doc.errs, e)
	}
}

// tomlLineBounds are the offsets of a line, its newline left out; lines count from 1.
func tomlLineBounds(data []byte, line int) (from, to int) {
	for ; line > 1; line-- {
		i := bytes.IndexByte(data[from:], '\n')
		if i < 0 {
			return len(data), len(data)
		}
		from += i + 1
	}
	if i := bytes.IndexByte(data[from:], '\n'); i >= 0 {
		return from, from + i
	}
	return from, len(data)
}

// parsedUpTo is the end of the line of the last whole expression of data.
func parsedUpTo(data []byte) int {
	var p unstable.Parser
	end := 0
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind == unstable.KeyValue {
			end = int(e.Raw.Offset + e.Raw.Length)
		} else {
			for k := e.Key(); k.Next(); {
				end = int(k.Node().Raw.Offset + k.Node().Raw.Length)
			}
		}
	}
	if p.Error() == nil {
		return len(data)
	}
	if i := bytes.IndexByte(data[end:], '\n'); i >= 0 {
		return end + i + 1
	}
	return end
}

var (
	tomlAssignment = regexp.MustCompile(`^\s*([A-Za-z0-9_.-]+)\s*=\s*(.*)$`)
	tomlHeader     = regexp.MustCompile(`^\s*\[\[?\s*([A-Za-z0-9_.-]+)\s*\]\]?\s*(#.*)?$`)
	tomlBareWord   = regexp.MustCompile(`^[^\s"'#\[\]{}=,]+$`)
	tomlFirstWord  = regexp.MustCompile(`^[A-Za-z0-9_-]+`)
	tomlBareKey    = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

// syntaxError records what is wrong with one line and tells whether the lines after
// it can be read as if it were not there.
func (doc *tomlDocument) syntaxError(data []byte, text string, found *tomlError) (confined bool) {
	line, problem := found.at.Line, found.problem
	e := configError{File: doc.file, Line: line, Column: found.at.Column}
	before := positionsOf(data) // up to the error, if it is one of syntax

	var single unstable.Parser
	single.Reset([]byte(text))
	for single.NextExpression() {
	}
	header := beginsWith(strings.TrimSpace(text), "[")
	if single.Error() == nil {
		// The line is well-formed by itself: what is wrong is where it stands.
		if key := found.key; len(key) > 0 {
			if !header { // a header has the whole name, a key only what is on its line
				e.Key = tableAbove(data, line)
			}
			for _, part := range key[:min(len(key), maxQuoted)] {
				e.Key = tomlJoinKey(e.Key, part)
			}
			e.Column = 0
			e.Problem = problem + "; keep one of the two"
			if at, ok := before[e.Key]; ok && at.key.Line < line {
				e.Problem = fmt.Sprintf("already on line %d; keep one of the two", at.key.Line)
				if header {
					e.Problem = fmt.Sprintf("already on line %d; put the keys of both sections below one header", at.key.Line)
				}
			}
			doc.add(e)
			return !header
		}
		open := bytes.Count(data[:parsedUpTo(data)], []byte("\n")) + 1
		e.Problem = fmt.Sprintf("not valid TOML (%s); close the bracket or quote that was opened on line %d or below", problem, open)
		doc.add(e)
		return false
	}

	hint := "see https://toml.io for the syntax"
	if m := tomlAssignment.FindStringSubmatch(text); m != nil {
		key := m[1]
		value, comment, _ := cutText(m[2], "#")
		value = strings.TrimSpace(value)
		e.Key = key
		if table := tableAbove(data, line); table != "" {
			e.Key = table + "." + key
		}
		switch t := typeAt(doc.root, e.Key); {
		case value == "" && comment == "":
			hint = "write " + key + " = " + exampleFor(t)
		case t != nil && t.Kind() == reflect.Bool:
			hint = fmt.Sprintf("write %s = true or %[1]s = false", key)
		case t != nil && t.Kind() == reflect.Slice && beginsWith(value, "["):
			hint = fmt.Sprintf(`put each value in quotes, as %s = ["...", "..."]`, key)
		case t != nil && tomlIsInteger(t):
			hint = "write " + key + " = " + exampleFor(t)
		case !tomlBareWord.MatchString(value):
		case t != nil && t.Kind() == reflect.Slice:
			hint = fmt.Sprintf("write %s = [%s]", key, configQuote(value))
		default:
			hint = fmt.Sprintf("write %s = %s", key, configQuote(value))
		}
		if strings.Count(value, `"`) == 1 {
			hint = `close the string with a second "`
		}
	} else if header {
		hint = "write a section as [name]"
	} else if key := tomlFirstWord.FindString(strings.TrimSpace(text)); key != "" {
		hint = "write " + key + " = " + exampleFor(typeAt(doc.root, tomlJoinKey(tableAbove(data, line), key)))
	}
	e.Problem = fmt.Sprintf("not valid TOML (%s); %s", problem, hint)
	doc.add(e)
	return !header && !hasText(text, `"""`) && !hasText(text, `'''`)
}

// tableAbove is the name in the last table header before a line, for error texts.
func tableAbove(data []byte, line int) string {
	_, end := tomlLineBounds(data, line)
	table, elements := "", map[string]int{}
	for text := range bytes.Lines(data[:end]) {
		m := tomlHeader.FindSubmatch(bytes.TrimRight(text, "\r\n"))
		if m == nil {
			continue
		}
		table = string(m[1])
		if bytes.HasPrefix(bytes.TrimSpace(text), []byte("[[")) {
			elements[table]++
			table = fmt.Sprintf("%s[%d]", table, elements[table]-1)
		}
	}
	return table
}

// tomlJoinKey appends one part to a dotted key.
func tomlJoinKey(path, part string) string {
	if !tomlBareKey.MatchString(part) {
		part = configQuote(part)
	}
	if path == "" {
		return part
	}
	return path + "." + part
}

// positionsOf walks data up to its end or its first syntax error.
func positionsOf(data []byte) configPositions {
	w := positionWalker{at: configPositions{}, arrays: map[string]int{}, lineStart: []int{0}}
	for i, b := range data {
		if b == '\n' {
			w.lineStart = append(w.lineStart, i+1)
		}
	}
	w.p.Reset(data)
	table := ""
	for w.p.NextExpression() {
		switch e := w.p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = ""
			for k := e.Key(); k.Next() && len(table) <= maxKeyPath; {
				table = tomlJoinKey(table, string(k.Node().Data))
				w.mark(table, k.Node(), nil)
				if e.Kind == unstable.ArrayTable && k.IsLast() {
					w.arrays[table]++
				}
				if n := w.arrays[table]; n > 0 { // a header goes on with the last element
					table = fmt.Sprintf("%s[%d]", table, n-1)
					w.mark(table, k.Node(), nil)
				}
			}
		case unstable.KeyValue:
			w.keyValue(table, e)
		}
	}
	return w.at
}

type positionWalker struct {
	p         unstable.Parser
	at        configPositions
	arrays    map[string]int // number of [[elements]] so far
	lineStart []int
}

// mark records where path begins, unless it has been seen: a section counts from its header.
func (w *positionWalker) mark(path string, key, value *unstable.Node) {
	if _, ok := w.at[path]; ok {
		return
	}
	entry := w.at[path]
	entry.key = w.position(key)
	entry.value.Line = entry.key.Line
	if value != nil && value.Raw.Length > 0 {
		entry.value = w.position(value)
	}
	w.at[path] = entry
}

func (w *positionWalker) position(n *unstable.Node) configPosition {
	offset := int(n.Raw.Offset)
	i, found := slices.BinarySearch(w.lineStart, offset)
	if !found {
		i--
	}
	return configPosition{Line: i + 1, Column: offset - w.lineStart[i] + 1}
}

func (w *positionWalker) keyValue(table string, e *unstable.Node) {
	path := table
	var key *unstable.Node
	for k := e.Key(); k.Next(); {
		if len(path) > maxKeyPath {
			return
		}
		key = k.Node()
		path = tomlJoinKey(path, string(key.Data))
		if !k.IsLast() {
			w.mark(path, key, nil)
		}
	}
	w.mark(path, key, e.Value())
	w.inside(path, key, e.Value())
}

// inside marks what an array or inline table holds; brackets have no range of
// their own, so what is in them falls back to the key they belong to.
func (w *positionWalker) inside(path string, key, value *unstable.Node) {
	if len(path) > maxKeyPath {
		return
	}
	switch value.Kind {
	case unstable.InlineTable:
		for c := value.Children(); c.Next(); {
			if c.Node().Kind == unstable.KeyValue {
				w.keyValue(path, c.Node())
			}
		}
	case unstable.Array:
		i := 0
		for c := value.Children(); c.Next(); {
			n := c.Node()
			if n.Kind == unstable.Comment {
				continue
			}
			element := fmt.Sprintf("%s[%d]", path, i)
			if n.Raw.Length > 0 {
				w.mark(element, n, n)
			} else {
				w.mark(element, key, nil)
			}
			w.inside(element, key, n)
			i++
		}
	}
}

// --- from the tree into the struct ---

// decode sets v, a struct, from the tree.
func (doc *tomlDocument) decode(v reflect.Value) { doc.table("", doc.tree, v) }

func (doc *tomlDocument) sort() {
	sort.SliceStable(doc.errs, func(i, j int) bool {
		a, b := &doc.errs[i], &doc.errs[j]
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Key, b.Key)) < 0
	})
}

// mistyped records a value of the wrong kind, at the value.
func (doc *tomlDocument) mistyped(path, format string, args ...any) {
	at := doc.at[path].value
	if at.Line == 0 {
		at.Line = doc.at.line(path)
	}
	doc.add(configError{doc.file, at.Line, at.Column, path, fmt.Sprintf(format, args...)})
}

// tomlFields are the keys a struct type knows, in its order.
func tomlFields(t reflect.Type) (fields []reflect.StructField) {
	for _, f := range reflect.VisibleFields(t) {
		if f.IsExported() && !f.Anonymous && tomlName(f) != "-" {
			fields = append(fields, f)
		}
	}
	return fields
}

func tomlName(f reflect.StructField) string {
	name, _, _ := cutText(f.Tag.Get("toml"), ",")
	return cmp.Or(name, strings.ToLower(f.Name))
}

func (doc *tomlDocument) table(path string, tree map[string]any, v reflect.Value) {
	fields := map[string]reflect.StructField{}
	for _, f := range tomlFields(v.Type()) {
		fields[tomlName(f)] = f
	}
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		full := tomlJoinKey(path, key)
		if f, ok := fields[key]; ok {
			doc.value(full, key, tree[key], v.FieldByIndex(f.Index))
			continue
		}
		if len(doc.errs) >= maxConfigErrors {
			continue // before the search for what was meant, which takes its time
		}
		doc.add(configError{
			File: doc.file, Line: doc.at.line(full), Key: full,
			Problem: "unknown key; " + doc.nearest(path, key, v.Type()),
		})
	}
}

// nearest says which key may have been meant: one of the same table that is spelt
// nearly so, the same key of another table, or nearly that; else what the table has.
func (doc *tomlDocument) nearest(path, key string, t reflect.Type) string {
	tolerance := max(1, (len(key)+1)/3)
	best, distance := "", tolerance+1
	var names []string
	for _, f := range tomlFields(t) {
		names = append(names, tomlName(f))
		if d := editDistance(key, tomlName(f)); d < distance {
			best, distance = tomlName(f), d
		}
	}
	if distance <= 1 {
		return fmt.Sprintf("did you mean %q?", best)
	}
	elsewhere := ""
	for _, f := range tomlFields(doc.root) {
		section := tomlName(f)
		if f.Type.Kind() != reflect.Struct || section == path || reflect.PointerTo(f.Type).Implements(textUnmarshaler) {
			continue
		}
		for _, g := range tomlFields(f.Type) {
			if d := editDistance(key, tomlName(g)); d < distance {
				best, elsewhere, distance = tomlName(g), section, d
			}
		}
	}
	switch {
	case elsewhere != "":
		return fmt.Sprintf("did you mean %q in [%s]?", best, elsewhere)
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	}
	where := "known here"
	if path == "" {
		where = "known"
	}
	return where + ": " + strings.Join(names, ", ")
}

// editDistance counts the inserted, dropped, changed and swapped letters between a
// and b, case aside. What is much longer than any key is not compared at all.
func editDistance(a, b string) int {
	if len(a) > maxQuoted || len(b) > maxQuoted {
		return math.MaxInt
	}
	a, b = strings.ToLower(a), strings.ToLower(b)
	var before []int
	previous := make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := previous[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, previous[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, previous = previous, row
	}
	return previous[len(b)]
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// value sets v from raw, what tomlTree makes of a value. key is the last
// part of path, for the example.
func (doc *tomlDocument) value(path, key string, raw any, v reflect.Value) {
	t := v.Type()
	if t.Kind() == reflect.Pointer {
		fresh := reflect.New(t.Elem())
		before := len(doc.errs)
		if doc.value(path, key, raw, fresh.Elem()); len(doc.errs) == before {
			v.Set(fresh)
		}
		return
	}
	wrong := func() {
		example := key + " = " + exampleFor(t)
		if strings.HasSuffix(path, "]") {
			example = exampleFor(t) // an element has no key of its own
		}
		doc.mistyped(path, "%s; write %s", describeTOML(raw, t), example)
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		switch raw := raw.(type) {
		case string:
			// Into a copy, so that a wrong value leaves the old one whole.
			fresh := reflect.New(t)
			if err := fresh.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(raw)); err != nil {
				doc.mistyped(path, "%s", err)
				return
			}
			v.Set(fresh.Elem())
		case int64:
			if _, isUnit := u.(tomlExample); isUnit && raw == 0 && tomlIsInteger(t) {
				v.SetInt(0) // "none" needs no unit
				return
			}
			wrong()
		default:
			wrong()
		}
		return
	}
	if reflect.TypeOf(raw).AssignableTo(t) && t.Kind() != reflect.Map && t.Kind() != reflect.Slice {
		v.Set(reflect.ValueOf(raw))
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		tree, ok := raw.(map[string]any)
		switch list, isList := raw.([]any); {
		case ok:
			doc.table(path, tree, v)
		case isList && len(list) > 0:
			doc.mistyped(path, "there is one such section, not a list of them; write [%s] once", path)
		default:
			doc.mistyped(path, "%s; write [%s] with its keys below", describeTOML(raw, t), path)
		}
	case reflect.Map:
		tree, ok := raw.(map[string]any)
		if !ok {
			doc.mistyped(path, "%s; write [%s] with its keys below", describeTOML(raw, t), path)
			return
		}
		m := reflect.MakeMap(t)
		for _, name := range slices.Sorted(maps.Keys(tree)) {
			element := reflect.New(t.Elem()).Elem()
			doc.value(tomlJoinKey(path, name), name, tree[name], element)
			m.SetMapIndex(reflect.ValueOf(name).Convert(t.Key()), element)
		}
		v.Set(m)
	case reflect.Slice:
		list, ok := raw.([]any)
		if !ok {
			if _, isTable := raw.(map[string]any); isTable && t.Elem().Kind() == reflect.Struct {
				doc.mistyped(path, "this section may be given more than once; write [[%s]]", path)
			} else if s, isString := raw.(string); isString && t.Elem().Kind() != reflect.Struct {
				doc.mistyped(path, "a string where a list is needed; write %s = [%s]", key, configQuote(s))
			} else {
				wrong()
			}
			return
		}
		// A wrong element stays in its place as a zero value: an allow_from that
		// lost its only entry would be the empty one, which lets everyone in.
		s := reflect.MakeSlice(t, len(list), len(list))
		for i, raw := range list {
			doc.element(fmt.Sprintf("%s[%d]", path, i), key, raw, s.Index(i))
		}
		v.Set(s)
	case reflect.Bool, reflect.String:
		if reflect.TypeOf(raw).Kind() != t.Kind() {
			wrong()
			return
		}
		v.Set(reflect.ValueOf(raw).Convert(t))
	case reflect.Float32, reflect.Float64:
		switch n := raw.(type) {
		case float64:
			v.SetFloat(n)
		case int64:
			v.SetFloat(float64(n))
		default:
			wrong()
		}
	default:
		n, ok := raw.(int64)
		switch {
		case !ok || !tomlIsInteger(t):
			wrong()
		case v.CanInt() && !v.OverflowInt(n):
			v.SetInt(n)
		case v.CanUint() && n >= 0 && !v.OverflowUint(uint64(n)):
			v.SetUint(uint64(n))
		default:
			doc.mistyped(path, "%d is out of range; write a smaller number, not below 0", n)
		}
	}
}

// element sets one element of a list; the example is that of the whole list.
func (doc *tomlDocument) element(path, key string, raw any, v reflect.Value) {
	if _, table := raw.(map[string]any); v.Kind() == reflect.String && raw != nil && !table {
		if s, ok := raw.(string); ok {
			v.SetString(s)
			return
		}
		doc.mistyped(path, "%s where a string is needed; write %s = [%s]", kindTOML(raw), key, configQuote(fmt.Sprint(raw)))
		return
	}
	doc.value(path, key, raw, v)
}

func tomlIsInteger(t reflect.Type) bool {
	return t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64
}

// kindTOML names what a value is, as a person writing TOML would.
func kindTOML(raw any) string {
	switch raw := raw.(type) {
	case string:
		return "the string " + configQuote(raw)
	case int64, float64:
		return fmt.Sprintf("the number %v", raw)
	case bool:
		return strconv.FormatBool(raw)
	case []any:
		return "a list"
	case map[string]any:
		return "a section"
	}
	return "a date or time"
}

// describeTOML says what is wrong with raw where a value of type t belongs.
func describeTOML(raw any, t reflect.Type) string {
	if n, number := raw.(int64); number && tomlIsInteger(t) { // so t has UnmarshalText
		if n < 0 {
			return fmt.Sprintf("%d is negative", n)
		}
		return fmt.Sprintf("%d has no unit", n)
	}
	need := "a string"
	switch {
	case reflect.PointerTo(t).Implements(textUnmarshaler):
	case t.Kind() == reflect.Bool:
		need = "true or false"
	case tomlIsInteger(t):
		need = "a whole number"
	case t.Kind() == reflect.Float32 || t.Kind() == reflect.Float64:
		need = "a number"
	case t.Kind() == reflect.Slice:
		need = "a list"
	case t.Kind() == reflect.Struct || t.Kind() == reflect.Map:
		need = "a section"
	}
	return kindTOML(raw) + " where " + need + " is needed"
}

// exampleFor is a value of type t as it is written in TOML.
func exampleFor(t reflect.Type) string {
	if t == nil {
		return `"value"`
	}
	if e, ok := reflect.Zero(t).Interface().(tomlExample); ok {
		return e.example()
	}
	switch {
	case t.Kind() == reflect.Pointer:
		return exampleFor(t.Elem())
	case t.Kind() == reflect.Bool:
		return "true"
	case tomlIsInteger(t):
		return "10"
	case t.Kind() == reflect.Float32 || t.Kind() == reflect.Float64:
		return "1.5"
	case t.Kind() == reflect.Slice:
		return "[" + exampleFor(t.Elem()) + "]"
	case t.Kind() == reflect.Struct || t.Kind() == reflect.Map:
		return "{ ... }"
	}
	return `"value"`
}

// typeAt is the type of a dotted key below t, nil if it has none.
func typeAt(t reflect.Type, key string) reflect.Type {
	for part := range strings.SplitSeq(key, ".") {
		for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Map:
			t = t.Elem()
		case reflect.Struct:
			part, _, _ = cutText(part, "[")
			fields := tomlFields(t)
			i := slices.IndexFunc(fields, func(f reflect.StructField) bool { return tomlName(f) == part })
			if i < 0 {
				return nil
			}
			t = fields[i].Type
		default:
			return nil
		}
	}
	return t
}

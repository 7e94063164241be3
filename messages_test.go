package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const operationsFile = "docs/operations.md"

// logCalls finds every message of the program at info and above, with its level and
// place, and every key. What is no literal has to be made one, or nobody can tell what
// the program says.
func logCalls(t *testing.T) (messages map[string][2]string, keys map[string]bool) {
	t.Helper()
	messages, keys = map[string][2]string{}, map[string]bool{}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	levels := map[string]string{"Debug": "debug", "Info": "info", "Warn": "warn", "Error": "error", "Log": "info", "LogAttrs": "info", "say": "info", "changed": "info", "changedSo": "info", "announce": "info"}
	text := func(e ast.Expr) (string, bool) {
		lit, ok := e.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return "", false
		}
		s, err := strconv.Unquote(lit.Value)
		return s, err == nil
	}
	set := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				if list, ok := n.(*ast.CompositeLit); ok { // attrs := []any{"session", ...}
					if a, ok := list.Type.(*ast.ArrayType); ok && len(list.Elts) > 1 {
						if id, ok := a.Elt.(*ast.Ident); ok && id.Name == "any" {
							for i := 0; i < len(list.Elts); i += 2 {
								if key, ok := text(list.Elts[i]); ok {
									keys[key] = true
								}
							}
						}
					}
				}
				return true
			}
			method, on := "", ""
			switch f := call.Fun.(type) {
			case *ast.Ident:
				method = f.Name
			case *ast.SelectorExpr:
				method = f.Sel.Name
				switch x := f.X.(type) {
				case *ast.Ident:
					on = x.Name
				case *ast.SelectorExpr:
					on = x.Sel.Name
				}
			}
			if on == "slog" && len(call.Args) == 2 {
				if key, ok := text(call.Args[0]); ok {
					keys[key] = true
				}
			}
			at := 0
			switch {
			case method == "append" && len(call.Args) > 2 || method == "With" && on == "log":
				at = -1
				if method == "append" {
					if id, ok := call.Args[0].(*ast.Ident); !ok || id.Name != "attrs" {
						return true
					}
					at = 0
				}
			case method == "say" && on == "", method == "changed" && on == "s", method == "changedSo" && on == "s", method == "announce" && on == "k":
			case levels[method] == "" || on != "log" && on != "logger":
				return true
			case method == "Log" || method == "LogAttrs":
				at = 2
			}
			if method != "append" && at >= 0 {
				what := call.Args[at]
				msg, ok := text(what)
				switch id, isName := what.(*ast.Ident); {
				case ok && levels[method] != "debug":
					messages[msg] = [2]string{levels[method], set.Position(call.Pos()).String()}
				case ok:
				case isName && slices.Contains([]string{"msg", "what"}, id.Name): // handed on by say, changed and announce
				default:
					t.Errorf("%v: the message is no literal", set.Position(call.Pos()))
				}
			}
			switch method {
			case "changed":
				at++ // the path
			case "changedSo":
				at += 2 // and the result
			}
			for i := at + 1; i < len(call.Args); i += 2 {
				if key, ok := text(call.Args[i]); ok {
					keys[key] = true
				}
			}
			return true
		})
	}
	return messages, keys
}

// TestMessagesDocumented holds the tables of docs/operations.md against the program: a
// message, a key or a MESSAGE_ID that is missing there, and one that is there and nowhere else.
func TestMessagesDocumented(t *testing.T) {
	data, err := os.ReadFile(operationsFile)
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(data), "\n## Messages\n")
	if !ok {
		t.Fatalf("%s has no section Messages", operationsFile)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string]string{} // message to level
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (info|warn|error) \\| .+ \\|$").FindAllStringSubmatch(section, -1) {
		rows[m[1]] = m[2]
	}
	messages, keys := logCalls(t)
	messages["log lines lost"] = [2]string{"warn", "log.go"} // made without a logger
	if len(messages) < 80 || len(keys) < 60 {
		t.Fatalf("only %d messages and %d keys were found in the program", len(messages), len(keys))
	}
	for msg, is := range messages {
		if rows[msg] == "" {
			t.Errorf("%s: no row for `%s` (%s) in the section Messages of %s", is[1], msg, is[0], operationsFile)
		}
	}
	for msg := range rows {
		if _, ok := messages[msg]; !ok {
			t.Errorf("%s: `%s` is nowhere in the program", operationsFile, msg)
		}
	}

	fields := map[string]bool{}
	for _, m := range regexp.MustCompile("`BERTH_([A-Z_0-9]+)`").FindAllStringSubmatch(section, -1) {
		fields[m[1]] = true
	}
	for key := range keys {
		if key == "dur" {
			key = "duration"
		}
		if key = strings.ToUpper(key); !fields[key] {
			t.Errorf("%s: no field `BERTH_%s`", operationsFile, key)
		}
		delete(fields, key)
	}
	for field := range fields {
		t.Errorf("%s: no line has a field `BERTH_%s`", operationsFile, field)
	}

	ids := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([0-9a-f]{32})` \\| `([^`]+)` \\|$").FindAllStringSubmatch(section, -1) {
		ids[m[2]] = m[1]
	}
	for line := range strings.Lines(strings.TrimPrefix(journalIDs, "\n")) {
		event, id, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if ids[event] != id {
			t.Errorf("%s: `%s` has %q; want %s", operationsFile, event, ids[event], id)
		}
		delete(ids, event)
	}
	for event := range ids {
		t.Errorf("%s: `%s` has no MESSAGE_ID", operationsFile, event)
	}
}

"""A kernel's BTF as drgn types, for kernels without debug information. drgn itself (0.3) cannot read BTF.

BTF has the types of functions and of per-CPU variables, but of no other variable. The types of those that drgn's
helpers start from are listed here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from harness.kernel.btf import Btf, BtfError, BtfKind, Member, Record

#: Variables and their types, as the kernel declares them (include/linux/sched/task.h, mm_types.h and others).
VARIABLES = {
    "init_task": "struct task_struct",
    "init_mm": "struct mm_struct",
    "init_pid_ns": "struct pid_namespace",
    "init_uts_ns": "struct uts_namespace",
    "modules": "struct list_head",
    "jiffies": "unsigned long",
    "linux_banner": "const char []",
}
_BOOL, _CHAR, _SIGNED = 4, 2, 1  # BTF_INT_ENCODING


class BtfTypes:
    """Finders for a :class:`drgn.Program`. A type is made on first use."""

    def __init__(self, drgn: Any, program: Any, btf: Btf) -> None:
        self._drgn = drgn
        self._program = program
        self._btf = btf
        self._made: dict[int, Any] = {}
        kinds = drgn.TypeKind
        self._by_kind = {
            kinds.STRUCT: (BtfKind.STRUCT,),
            kinds.UNION: (BtfKind.UNION,),
            kinds.ENUM: (BtfKind.ENUM, BtfKind.ENUM64),
            kinds.TYPEDEF: (BtfKind.TYPEDEF,),
            kinds.INT: (BtfKind.INT,),
            kinds.BOOL: (BtfKind.INT,),
        }

    def find_type(self, _program: Any, kinds: Any, name: str, filename: str | None) -> Any:
        """drgn's type finder: return a type by name; None if BTF has none."""
        if filename:
            return None
        for kind, wanted in self._by_kind.items():
            if kind in kinds and (type_id := self._find(name, *wanted)) is not None:
                found = self.make(type_id)
                if found.kind == kind:
                    return found
        return None

    def find_object(self, program: Any, name: str, flags: Any, filename: str | None) -> Any:
        """drgn's object finder: return a variable or function that has a known type and a symbol; otherwise None."""
        wanted = self._drgn.FindObjectFlags
        if filename:
            return None
        if flags & wanted.CONSTANT and (type_id := self._ids[1].get(name)) is not None:
            enum = self.make(type_id)
            return self._drgn.Object(program, enum, dict(enum.enumerators)[name])
        found = None
        if flags & wanted.VARIABLE:
            found = program.type(VARIABLES[name]) if name in VARIABLES else self._declared(name, BtfKind.VAR)
        if found is None and flags & wanted.FUNCTION:
            found = self._declared(name, BtfKind.FUNC)
        try:
            return None if found is None else self._drgn.Object(program, found, address=program.symbol(name).address)
        except LookupError:
            return None

    @functools.cached_property
    def _ids(self) -> tuple[dict[tuple[BtfKind, str], int], dict[str, int]]:
        """The id of the first type with each name, and the id of the enum that has each constant."""
        named: dict[tuple[BtfKind, str], int] = {}
        constants: dict[str, int] = {}
        for type_id in range(1, len(self._btf)):
            record = self._btf.record(type_id)
            if record.name:
                named.setdefault((record.kind, record.name), type_id)
            if record.kind in (BtfKind.ENUM, BtfKind.ENUM64):
                words = _enum_words(record)
                for index in range(record.count):
                    constants.setdefault(self._btf.name(self._btf.words(record, words, index)[0]), type_id)
        return named, constants

    def _declared(self, name: str, kind: BtfKind) -> Any:
        """Return the type of a variable or function; None if BTF does not have it."""
        type_id = self._find(name, kind)
        return None if type_id is None else self.make(self._btf.record(type_id).size_or_type)

    def _find(self, name: str, *kinds: BtfKind) -> int | None:
        named, _ = self._ids
        return next((named[kind, name] for kind in kinds if (kind, name) in named), None)

    def make(self, type_id: int) -> Any:
        """Return the type with this id."""
        if type_id not in self._made:
            self._made[type_id] = self._make(type_id) if type_id else self._program.void_type()
        return self._made[type_id]

    def _make(self, type_id: int) -> Any:
        record = self._btf.record(type_id)
        program, inner = self._program, record.size_or_type
        qualifiers = self._drgn.Qualifiers
        match record.kind:
            case BtfKind.PTR:
                return program.pointer_type(self.make(inner))
            case BtfKind.TYPEDEF:
                return program.typedef_type(record.name, self.make(inner))
            case BtfKind.CONST:
                return self._qualified(inner, qualifiers.CONST)
            case BtfKind.VOLATILE:
                return self._qualified(inner, qualifiers.VOLATILE)
            case BtfKind.RESTRICT:
                return self._qualified(inner, qualifiers.RESTRICT)
            case BtfKind.TYPE_TAG | BtfKind.FUNC:
                return self.make(inner)
            case BtfKind.ARRAY:
                element, _, length = self._btf.words(record, 3)
                return program.array_type(self.make(element), length)
            case BtfKind.FUNC_PROTO:
                return self._function(record)
            case BtfKind.STRUCT | BtfKind.UNION | BtfKind.FWD:
                return self._composite(record)
            case _:
                return self._scalar(record)

    def _qualified(self, type_id: int, qualifier: Any) -> Any:
        inner = self.make(type_id)
        return inner.qualified(inner.qualifiers | qualifier)

    def _scalar(self, record: Record) -> Any:
        program, size_bytes = self._program, record.size_or_type
        if record.kind is BtfKind.FLOAT:
            return program.float_type(record.name, size_bytes)
        if record.kind in (BtfKind.ENUM, BtfKind.ENUM64):
            return self._enum(record)
        if record.kind is not BtfKind.INT:
            raise BtfError(f"{record.name or 'an anonymous type'} of kind {record.kind.name} is not a C type")
        encoding = self._btf.words(record, 1)[0] >> 24
        if encoding & _BOOL:
            return program.bool_type(record.name, size_bytes)
        return program.int_type(record.name, size_bytes, bool(encoding & _SIGNED))

    def _enum(self, record: Record) -> Any:
        drgn, size_bytes = self._drgn, record.size_or_type
        words = _enum_words(record)
        limit = 1 << 32 * (words - 1)
        enumerators = []
        for index in range(record.count):
            name, *value_words = self._btf.words(record, words, index)
            value = sum(word << 32 * place for place, word in enumerate(value_words))
            signed = value - limit if record.flag and value >= limit // 2 else value
            enumerators.append(drgn.TypeEnumerator(self._btf.name(name), signed))
        if not enumerators:
            return self._program.enum_type(record.name or None)
        underlying = self._program.int_type("int" if record.flag else "unsigned int", size_bytes, record.flag)
        return self._program.enum_type(record.name or None, underlying, tuple(enumerators))

    def _function(self, record: Record) -> Any:
        parameters, variadic = [], False
        for index in range(record.count):
            name, type_id = self._btf.words(record, 2, index)
            if type_id == 0 and name == 0:  # "..."
                variadic = True
                continue
            parameters.append(self._drgn.TypeParameter(self.make(type_id), self._btf.name(name) or None))
        return self._program.function_type(self.make(record.size_or_type), tuple(parameters), variadic)

    def _composite(self, record: Record) -> Any:
        program = self._program
        is_union = record.flag if record.kind is BtfKind.FWD else record.kind is BtfKind.UNION
        make = program.union_type if is_union else program.struct_type
        if record.kind is BtfKind.FWD:
            return make(record.name or None)
        members = [
            self._drgn.TypeMember(self._later(member), member.name or None, member.bit_offset)
            for member in self._btf.members(record)
        ]
        return make(record.name or None, record.size_or_type, tuple(members))

    def _later(self, member: Member) -> Callable[[], Any]:
        """Return a function that makes a member's type on first use, because structs point to each other."""

        def made() -> Any:
            found = self.make(member.type_id)
            if member.bit_size is None:
                return found
            return self._drgn.Object(self._program, found, bit_field_size=member.bit_size)

        return made


def _enum_words(record: Record) -> int:
    """Return the number of 32-bit words per constant: its name and its value."""
    return 3 if record.kind is BtfKind.ENUM64 else 2

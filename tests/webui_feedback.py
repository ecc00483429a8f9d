"""A row of open-webui's feedback export, with the chat that it is about."""


def webui(row, rating, key, *, user="u1", arena=False, details=None):
    node = {"role": "assistant", "parentId": "q"}
    messages = {
        "s": {"id": "s", "parentId": None, "role": "system", "content": "Be brief."},
        "q": {"id": "q", "parentId": "s", "role": "user", "content": "Hi", "childrenIds": ["a",
         "b"]},
        "a": {**node, "id": "a", "content": "Hello.", "model": "m1", "childrenIds": []},
        "b": {**node, "id": "b", "content": "What?", "model": "m2", "childrenIds": []},
    }  # fmt: skip
    data = {"rating": rating, "model_id": "m1", "details": {"rating": details}}
    return {
        "id": row, "user_id": user, "type": "rating", "data": data,
        "meta": {"arena": arena, "chat_id": "c1", "message_id": key},
        "snapshot": {"chat": {"chat": {"history": {"messages": messages}}}},
        "created_at": 1700000000,
    }  # fmt: skip

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CapacityLimitPeriod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPACITY_LIMIT_PERIOD_UNSPECIFIED: _ClassVar[CapacityLimitPeriod]
    CAPACITY_LIMIT_PERIOD_DAILY: _ClassVar[CapacityLimitPeriod]
    CAPACITY_LIMIT_PERIOD_WEEKLY: _ClassVar[CapacityLimitPeriod]
    CAPACITY_LIMIT_PERIOD_MONTHLY: _ClassVar[CapacityLimitPeriod]
    CAPACITY_LIMIT_PERIOD_YEARLY: _ClassVar[CapacityLimitPeriod]
CAPACITY_LIMIT_PERIOD_UNSPECIFIED: CapacityLimitPeriod
CAPACITY_LIMIT_PERIOD_DAILY: CapacityLimitPeriod
CAPACITY_LIMIT_PERIOD_WEEKLY: CapacityLimitPeriod
CAPACITY_LIMIT_PERIOD_MONTHLY: CapacityLimitPeriod
CAPACITY_LIMIT_PERIOD_YEARLY: CapacityLimitPeriod

class AuthDataRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuthDataResponse(_message.Message):
    __slots__ = ("endpoints",)
    class EndpointsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: GatewayEndpoint
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[GatewayEndpoint, _Mapping]] = ...) -> None: ...
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    endpoints: _containers.MessageMap[str, GatewayEndpoint]
    def __init__(self, endpoints: _Optional[_Mapping[str, GatewayEndpoint]] = ...) -> None: ...

class AuthDataUpdatesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuthDataUpdate(_message.Message):
    __slots__ = ("endpoint_id", "gateway_endpoint", "delete")
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    endpoint_id: str
    gateway_endpoint: GatewayEndpoint
    delete: bool
    def __init__(self, endpoint_id: _Optional[str] = ..., gateway_endpoint: _Optional[_Union[GatewayEndpoint, _Mapping]] = ..., delete: _Optional[bool] = ...) -> None: ...

class GatewayEndpoint(_message.Message):
    __slots__ = ("endpoint_id", "auth", "rate_limiting", "metadata")
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    AUTH_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMITING_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    endpoint_id: str
    auth: Auth
    rate_limiting: RateLimiting
    metadata: Metadata
    def __init__(self, endpoint_id: _Optional[str] = ..., auth: _Optional[_Union[Auth, _Mapping]] = ..., rate_limiting: _Optional[_Union[RateLimiting, _Mapping]] = ..., metadata: _Optional[_Union[Metadata, _Mapping]] = ...) -> None: ...

class Auth(_message.Message):
    __slots__ = ("no_auth", "static_api_key", "jwt")
    NO_AUTH_FIELD_NUMBER: _ClassVar[int]
    STATIC_API_KEY_FIELD_NUMBER: _ClassVar[int]
    JWT_FIELD_NUMBER: _ClassVar[int]
    no_auth: NoAuth
    static_api_key: StaticAPIKey
    jwt: JWT
    def __init__(self, no_auth: _Optional[_Union[NoAuth, _Mapping]] = ..., static_api_key: _Optional[_Union[StaticAPIKey, _Mapping]] = ..., jwt: _Optional[_Union[JWT, _Mapping]] = ...) -> None: ...

class NoAuth(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StaticAPIKey(_message.Message):
    __slots__ = ("api_key",)
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    api_key: str
    def __init__(self, api_key: _Optional[str] = ...) -> None: ...

class JWT(_message.Message):
    __slots__ = ("authorized_users",)
    class AuthorizedUsersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Empty
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Empty, _Mapping]] = ...) -> None: ...
    AUTHORIZED_USERS_FIELD_NUMBER: _ClassVar[int]
    authorized_users: _containers.MessageMap[str, Empty]
    def __init__(self, authorized_users: _Optional[_Mapping[str, Empty]] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RateLimiting(_message.Message):
    __slots__ = ("throughput_limit", "capacity_limit", "capacity_limit_period")
    THROUGHPUT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_LIMIT_PERIOD_FIELD_NUMBER: _ClassVar[int]
    throughput_limit: int
    capacity_limit: int
    capacity_limit_period: CapacityLimitPeriod
    def __init__(self, throughput_limit: _Optional[int] = ..., capacity_limit: _Optional[int] = ..., capacity_limit_period: _Optional[_Union[CapacityLimitPeriod, str]] = ...) -> None: ...

class Metadata(_message.Message):
    __slots__ = ("name", "account_id", "user_id", "plan_type", "email", "environment")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_TYPE_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    account_id: str
    user_id: str
    plan_type: str
    email: str
    environment: str
    def __init__(self, name: _Optional[str] = ..., account_id: _Optional[str] = ..., user_id: _Optional[str] = ..., plan_type: _Optional[str] = ..., email: _Optional[str] = ..., environment: _Optional[str] = ...) -> None: ...
